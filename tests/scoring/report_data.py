"""Videos with errors and odd names, a report of them, and a parser of its page."""

import json
from html.parser import HTMLParser

import numpy as np
from PIL import Image

from vss_hf.scoring import Report, score_predictions


EVIL = "<script>alert('car')<!--</script>"
NAMES = {"road": 1, EVIL: 2, "a & b": 4, "never": 7}
VIDEOS = {"dense": 12, "<img src=x onerror=alert(1)>": 7, "one": 1}
SIZE = (18, 24)


def maps(name, length):
    """Values on disk, labels predicted for them and labels of another dump, (T, H, W) each."""
    rng = np.random.default_rng([*name.encode()])
    values = np.repeat(rng.choice([0, 1, 2, 4, 255], (1, *SIZE)), length, axis=0)
    for t in range(length):
        values[t:, rng.random(SIZE) < 0.03] = rng.choice([1, 2, 4])
    right = np.select([values == 2, values == 4], [1, 2], 0)
    wrong = rng.random((length, 1, 1)) / 2  # every frame has another share of wrong pixels
    a, b = (np.where(rng.random(values.shape) < wrong, rng.integers(0, 4, values.shape), right) for _ in "ab")
    return values.astype(np.uint8), a.astype(np.uint8), b.astype(np.uint8)


def write(folder, pictures, suffix="png"):
    folder.mkdir(parents=True)
    for number, picture in enumerate(pictures):
        Image.fromarray(picture).save(folder / f"{number:04d}.{suffix}")


def make_data(folder):
    """A data set and two dumps, of which the other lacks the last frame of the first video; the videos' maps."""
    videos = {name: maps(name, length) for name, length in VIDEOS.items()}
    for name, (values, a, b) in videos.items():
        write(folder / "root/data" / name / "origin", np.repeat(values[..., None] * 9, 3, -1), "jpg")
        write(folder / "root/data" / name / "mask", values)
        write(folder / "labels" / name, a)
        write(folder / "other/out" / name, b)
    (folder / "other/out/dense/0011.png").unlink()
    (folder / "root/val.txt").write_text("".join(f"{name}\n" for name in videos))
    (folder / "root/label_num_dic_final.json").write_text(json.dumps(NAMES))
    return folder, videos


def make_report(folder, out):
    """A report of all videos: its folder and the results."""
    report = Report(out, compare=folder / "other")
    results = score_predictions(folder / "labels", folder / "root", with_timeline=True, report=report)
    assert not out.exists()  # the page comes when all of it is there
    assert report.write(results) == out / "index.html"
    return out, results


class Page(HTMLParser):
    """Elements as (tag, attributes, text directly inside), in order."""

    def __init__(self, path):
        super().__init__()
        self.elements, self.open = [], []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        element = {"tag": tag, "text": "", "inside": [dict(of) for of in self.open], **dict(attrs)}
        self.elements.append(element)
        if tag not in ("meta", "img", "input", "br", "line", "path"):
            self.open.append({"tag": tag, **dict(attrs), "element": len(self.elements) - 1})

    def handle_endtag(self, tag):
        if tag not in ("line", "path"):
            assert self.open[-1]["tag"] == tag, f"</{tag}> closes <{self.open[-1]['tag']}>"
            self.open.pop()

    def handle_data(self, text):
        for element in self.open[-1:]:
            self.elements[element["element"]]["text"] += text

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)

    def all(self, tag, within=None, **attributes):
        """Elements of a tag and attributes, inside an element of class or id `within`."""
        return [
            element
            for element in self.elements
            if element["tag"] == tag
            and all(element.get(key.replace("_", "-")) == value for key, value in attributes.items())
            and (
                within is None
                or any(within in (of.get("id"), *of.get("class", "").split()) for of in element["inside"])
            )
        ]

    def rows(self, table):
        """The values of every row in the body of a table: what its cells are sorted by."""
        found = []
        for element in self.elements:
            places = [of["tag"] for of in element["inside"]]
            if "tbody" in places and any(table in of.get("class", "") for of in element["inside"]):
                if element["tag"] == "tr":
                    found.append([])
                elif "data-value" in element:
                    found[-1].append(element["data-value"])
        return found

    @property
    def data(self):
        """What the script reads."""
        return json.loads(self.all("script", type="application/json")[0]["text"])
