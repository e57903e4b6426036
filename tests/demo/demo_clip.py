"""What the tests of the demo know of its clip."""

FRAMES = 5
