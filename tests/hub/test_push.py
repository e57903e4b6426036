"""Pushing to a Hub on this machine: what arrives, which bytes were sent, and what stays here when it fails."""

import json
import re
import shlex
import signal

import pytest
import torch
from folders import contents, fingerprint
from hub_server import OTHER_TOKEN, TOKEN
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file

from vss_hf.hub_cards import PushError, prepare_repo, push_folder, write_card
from vss_hf.hub_cards.card_text import KEEP_OPEN


NAME = "alice/street"
COMMIT = "POST /api/models/.*/commit/"


def change_weights(folder, name="model.safetensors") -> None:
    tensors = {key: tensor + 1 for key, tensor in load_file(folder / name).items()}
    save_file(tensors, folder / name, metadata={"format": "pt"})


def failed_push(folder, **settings) -> PushError:
    """A push that must fail and leave the folder byte for byte as it was."""
    before = fingerprint(folder)
    with pytest.raises(PushError) as failure:
        push_folder(folder, NAME, **settings)
    assert fingerprint(folder) == before
    text = str(failure.value)
    assert "\n" not in text and TOKEN not in text and OTHER_TOKEN not in text
    return failure.value


# --- what arrives


def test_new_repository(hub, folder):
    before = contents(folder)
    result = push_folder(folder, NAME)
    there = hub.files(NAME)
    assert hub.repo(NAME).private is True
    assert hub.seen("POST /api/repos/create") and len(hub.seen(COMMIT)) == 1
    assert there == contents(folder)
    assert {name: data for name, data in there.items() if name != "README.md"} == {
        name: data for name, data in before.items() if name != "README.md"
    }
    assert any(name.startswith(".eval_results/") for name in there) and "overlay.jpg" in there
    assert set(result.sent) == set(there) and result.unchanged == 0
    assert result.sent_bytes == sum(map(len, there.values()))
    assert result.repo_url == f"{hub.url}/{NAME}" and result.pr_url is None
    assert result.commit_url == f"{hub.url}/{NAME}/commit/{hub.repo(NAME).branches['main']}"
    assert hub.history(NAME)[0] == "Upload street"
    # Large files go to another host, where the token has no business.
    stored = hub.seen("/storage/")
    assert stored and all(request.authorization is None for request in stored)


def test_the_card_gets_the_repository(hub, folder):
    options = {"license": "mit", "title": "Streets", "description": "Made --> with care.\nTwice.", "base_model": "a/b"}
    path = write_card(folder, **options)
    path.write_text(path.read_text().replace(f"{KEEP_OPEN}\n\n", f"{KEEP_OPEN}\nMy notes.\n"))
    push_folder(folder, NAME)
    text = hub.files(NAME)["README.md"].decode()
    assert text == path.read_text()
    assert f'source = "{NAME}"' in text and "\nMy notes.\n" in text and "# Streets" in text
    assert "Made --> with care." in text
    head = ModelCard(text).data
    assert head.license == "mit" and head.base_model == "a/b" and head.model_name == "Streets"
    push_folder(folder, "alice/other")  # and again from a card that already names one
    text = hub.files("alice/other")["README.md"].decode()
    assert 'source = "alice/other"' in text and "# Streets" in text and NAME not in text and "My notes." in text


def test_a_card_edited_by_hand_goes_up_as_it_is(hub, folder):
    path = folder / "README.md"
    path.write_text("---\nlicense: mit\n---\n# By hand\n")
    before = fingerprint(folder)
    with pytest.warns(UserWarning, match="edited by hand"):
        push_folder(folder, NAME)
    assert hub.files(NAME)["README.md"] == path.read_bytes()
    assert fingerprint(folder) == before


def test_without_a_card_one_is_written(hub, folder):
    (folder / "README.md").unlink()
    push_folder(folder, NAME)
    assert hub.files(NAME)["README.md"] == (folder / "README.md").read_bytes()
    assert NAME in (folder / "README.md").read_text()


def test_what_is_of_no_use_stays_here(hub, folder):
    for name in (".git/config", ".cache/huggingface/x", "README.previous.md", "model.safetensors.part", ".DS_Store"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")
    result = push_folder(folder, NAME)
    assert len(result.left_out) == 5 and not set(result.left_out) & set(hub.files(NAME))
    assert "left out: " in result.lines()[-1]


# --- only what changed


def test_again_nothing_is_sent(hub, folder):
    first = push_folder(folder, NAME)
    before = fingerprint(folder)
    hub.forget()
    result = push_folder(folder, NAME)
    assert hub.bytes_received() == 0
    assert not hub.seen("POST .*(preupload|commit|lfs|create)") and not hub.seen("PUT")
    assert len(hub.history(NAME)) == 2
    assert result.sent == [] and result.unchanged == len(first.sent) and result.commit_url == first.commit_url
    assert "nothing changed" in result.lines()[1]
    assert fingerprint(folder) == before


@pytest.mark.parametrize("name", ["model.safetensors", "overlay.jpg", "config.json"])
def test_only_a_changed_file_is_sent(hub, folder, name):
    push_folder(folder, NAME)
    hub.forget()
    path = folder / name
    if name == "model.safetensors":
        change_weights(folder)
    else:
        path.write_bytes(path.read_bytes() + b" ")
    result = push_folder(folder, NAME)
    # A large file goes to the storage, a small one (with base64's 4/3) into the commit.
    assert hub.bytes_received() == (0 if name == "config.json" else path.stat().st_size)
    (commit,) = hub.seen(COMMIT)
    assert commit.received < 1000 + (path.stat().st_size * 4 / 3 if name == "config.json" else 0)
    assert result.sent == [name] and hub.files(NAME) == contents(folder)


def test_weights_of_another_cut_are_replaced(hub, folder, whole_model):
    """from_pretrained would go on loading an old model.safetensors beside new shards, without a word."""
    push_folder(folder, NAME)
    from vss_hf import OCRNetForSemanticSegmentation

    model = OCRNetForSemanticSegmentation.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="25KB")
    result = push_folder(folder, NAME)
    assert result.removed == ["model.safetensors"]
    assert hub.files(NAME) == contents(folder)
    for path in folder.glob("model*"):
        path.unlink()
    (folder / "model.safetensors").write_bytes((whole_model / "model.safetensors").read_bytes())
    hub.forget()
    result = push_folder(folder, NAME)
    assert len(result.removed) >= 4 and hub.bytes_received() == 0  # the Hub has these weights from the first time
    assert hub.files(NAME) == contents(folder)


def test_a_listing_in_pages_and_a_file_in_parts(hub, sharded):
    hub.page_size, hub.part_size = 3, 20_000
    push_folder(sharded, NAME)
    assert hub.files(NAME) == contents(sharded)
    assert hub.seen("PUT /storage/.*/2$") and hub.seen("POST /complete/")
    hub.forget()
    assert push_folder(sharded, NAME).sent == []
    assert len(hub.seen("GET .*/tree/")) > 3


# --- where to


def test_revision(hub, folder):
    push_folder(folder, NAME)
    change_weights(folder)
    result = push_folder(folder, NAME, revision="v2/wide")
    assert result.sent == ["model.safetensors"]
    assert hub.files(NAME, "v2/wide") == contents(folder) != hub.files(NAME)
    assert push_folder(folder, NAME, revision="v2/wide").sent == []
    push_folder(folder, "alice/new", revision="draft")  # a branch of a repository that did not exist
    assert hub.files("alice/new") == {} and "model.safetensors" in hub.files("alice/new", "draft")


def test_pull_request(hub, folder):
    push_folder(folder, NAME, private=False)
    main = hub.files(NAME)
    change_weights(folder)
    result = push_folder(folder, NAME, private=False, create_pr=True, commit_message="Better weights")
    assert result.pr_url == f"{hub.url}/{NAME}/discussions/1"
    assert hub.files(NAME) == main
    assert hub.files(NAME, "refs/pr/1") == contents(folder)
    assert hub.history(NAME, "refs/pr/1")[0] == "Better weights"
    change_weights(folder)
    push_folder(folder, NAME, private=False, revision="refs/pr/1")  # going on with it
    assert hub.files(NAME, "refs/pr/1") == contents(folder) and len(hub.repo(NAME).pull_requests) == 1
    # Somebody else may propose, too.
    change_weights(folder)
    push_folder(folder, NAME, private=False, create_pr=True, token=OTHER_TOKEN)
    assert hub.files(NAME, "refs/pr/2") == contents(folder)
    with pytest.raises(ValueError, match="--create-pr with --revision"):
        push_folder(folder, NAME, create_pr=True, revision="v2")


def test_public_and_private(hub, folder):
    push_folder(folder, "alice/open", private=False)
    push_folder(folder, "alice/closed")
    assert (hub.repo("alice/open").private, hub.repo("alice/closed").private) == (False, True)
    before = hub.history("alice/open")
    change_weights(folder)
    with pytest.raises(PushError, match="it is public, and the push was to be private; allow it with --public"):
        push_folder(folder, "alice/open")
    assert hub.history("alice/open") == before
    push_folder(folder, "alice/closed", private=False)  # stays private
    assert hub.repo("alice/closed").private is True


def test_repository_made_by_hand_and_name_without_owner(hub, folder):
    hub.respond.__self__.repos["datasets", NAME] = None  # a data set of that name is another thing
    assert prepare_repo("street") == NAME
    assert hub.files(NAME) == {}
    push_folder(folder, "street")
    assert hub.files(NAME) == contents(folder) and hub.seen("GET /api/whoami-v2")
    assert len(hub.seen("POST /api/repos/create")) == 1


# --- what must not go up


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("training_args.bin", b"x", "training_args.bin: a pickled file is not pushed"),
        ("pytorch_model.bin", b"x", "a pickled file is not pushed"),
        ("extra.dat", b"\x80\x04\x95", "extra.dat: a pickled file is not pushed"),
        ("optimizer.pt", b"x", "optimizer.pt: belongs to a training run"),
        ("trainer_state.json", b"{}", "belongs to a training run"),
        ("checkpoint-4/config.json", b"{}", "belongs to a training run"),
        ("ema.safetensors", b"x", "belongs to a training run"),
        (".env", b"x", ".env: looks like a secret"),
        ("token", b"x", "token: looks like a secret"),
        ("notes.txt", b"first\nmy token is hf_" + b"Ab1" * 12, "notes.txt, line 2: looks like an access token"),
        ("training_recipe.yaml", b"hub_token: hf_" + b"Ab1" * 12, "line 1: looks like an access token"),
        ("config.json", b"{", "config.json is no JSON"),
        ("config.json", b"[]", "config.json holds a list"),
        ("config.json", None, "no config.json"),
        ("preprocessor_config.json", None, "no preprocessor_config.json"),
        ("model.safetensors", None, "no model.safetensors"),
        ("model.safetensors", b"\x80\x02pickle", "model.safetensors is damaged"),
    ],
)
def test_refused_before_anything_is_sent(hub, folder, name, content, message):
    path = folder / name
    if content is None:
        path.unlink()
    else:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    with pytest.raises((ValueError, FileNotFoundError), match=re.escape(message)) as refusal:
        push_folder(folder, NAME)
    assert "Ab1Ab1" not in str(refusal.value)
    assert hub.requests == []


def test_torch_archive_under_another_name(hub, folder):
    torch.save({"a": torch.zeros(2)}, folder / "weights.dat")
    with pytest.raises(ValueError, match="weights.dat: a pickled file"):
        push_folder(folder, NAME)
    assert hub.requests == []


def test_incomplete_weights_are_refused(hub, folder, sharded):
    index = json.loads((sharded / "model.safetensors.index.json").read_text())
    shard = sharded / sorted(set(index["weight_map"].values()))[1]
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1])
    with pytest.raises(ValueError, match=f"{shard.name} is damaged"):
        push_folder(sharded, NAME)
    shard.unlink()
    with pytest.raises(FileNotFoundError, match=f"{shard.name} is missing: model.safetensors.index.json says"):
        push_folder(sharded, NAME)
    some = next(name for name, file in index["weight_map"].items() if file == shard.name)
    save_file({name: torch.zeros(1) for name in index["weight_map"] if name != some}, shard)
    with pytest.raises(ValueError, match=f"does not hold {re.escape(some)}"):
        push_folder(sharded, NAME)
    assert hub.requests == []


# --- refusals of the Hub


def test_no_token(hub, folder, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(folder.parent / "no_token"))
    assert "there is no token; log in with `hf auth login`, or set HF_TOKEN" in str(failed_push(folder))
    assert hub.requests == []


def test_bad_token(hub, folder):
    """The server repeats the token in its answer; our message must not."""
    bad = "hf_" + "Wrong" * 7
    error = failed_push(folder, token=bad)
    assert bad not in str(error)
    assert "the Hub does not accept the token (401); log in with `hf auth login`" in str(error)
    assert "Nothing was sent" in str(error)


def test_no_rights(hub, folder):
    push_folder(folder, NAME, private=False)
    change_weights(folder)
    hub.repos["models", "bob/house"] = hub.repo(NAME)
    for where, token in ((NAME, OTHER_TOKEN), ("bob/house", TOKEN), ("bob/street", TOKEN)):
        with pytest.raises(PushError) as failure:
            push_folder(folder, where, private=False, token=token)
        owner = where.split("/")[0]
        assert "no right to do that (403)" in str(failure.value)
        instead = "" if where == "bob/street" else ", or propose the change with --create-pr"
        assert f"write access to {owner}{instead}. Not" in str(failure.value)


def test_no_repository_for_a_pull_request(hub, folder):
    assert "it does not exist, or the token may not see it" in str(failed_push(folder, create_pr=True))


BAD_NAMES = ["a/b/c", "datasets/alice/street", "alice/-x-", "alice/x--y", "al ice/x", "", "a/x.git"]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_bad_names(hub, folder, name):
    with pytest.raises(ValueError, match="expected owner/name on the Hub"):
        push_folder(folder, name)
    assert hub.requests == []


def test_bad_metadata_in_a_card_by_hand(hub, folder):
    (folder / "README.md").write_text("---\nlicense: [mit\n---\n")
    with pytest.warns(UserWarning, match="by hand"):
        assert "the Hub refused it (400)" in str(failed_push(folder))
    assert len(hub.history(NAME)) == 1


def test_a_gitignore_there_is_noticed(hub, folder):
    (folder / ".gitignore").write_text("overlay.jpg\n")
    push_folder(folder, NAME)  # the rules of the commit itself do not count on this server, those of later ones do
    (folder / "overlay.jpg").write_bytes(b"\xff\xd8\0other")
    error = failed_push(folder)
    assert "the commit does not hold all files: a .gitignore there" in str(error) and "yet: overlay.jpg" in str(error)


# --- trouble on the way


def kind(value) -> str:
    """What a fault is called in the name of a test."""
    return f"{value['do']} {value.get('status', '')}" if isinstance(value, dict) else ""


@pytest.mark.parametrize(
    "where",
    [
        r"GET /api/models/alice/street$",
        r"POST /api/repos/create",
        r"GET .*/tree/",
        r"POST .*/preupload/",
        r"POST .*/objects/batch",
        r"PUT /storage/",
        r"POST /verify",
        r"POST /api/validate-yaml",
        COMMIT,
        r"POST .*/paths-info/",
    ],
)
@pytest.mark.parametrize(
    "fault",
    [
        {"do": "status", "status": 503, "times": 2},
        {"do": "status", "status": 429, "headers": {"Retry-After": "7"}},
        pytest.param({"do": "hang up", "times": 2}, marks=pytest.mark.slow),
        {"do": "lose answer"},
    ],
    ids=kind,
)
def test_trouble_that_passes(hub, folder, where, fault):
    hub.fail(where, **fault)
    push_folder(folder, NAME)
    found = where == COMMIT and fault["do"] == "lose answer"  # it was done, and is not asked for again
    assert hub.faults[0].seen == 1 if found else hub.faults[0].seen > fault.get("times", 1)
    assert hub.files(NAME) == contents(folder)
    assert hub.history(NAME) == ["Upload street", "initial commit"]  # one commit, also when its answer was lost
    assert hub.waits and all(wait <= 8 for wait in hub.waits)
    if fault.get("status") == 429:
        assert max(hub.waits) >= 7


STEPS = [
    (r"GET /api/models/alice/street$", "looking for the repository"),
    (r"POST /api/repos/create", "making the repository"),
    (r"GET .*/tree/", "listing the files there"),
    (r"POST .*/preupload/", "sending 7 smaller files"),
    (r"POST .*/objects/batch", "sending 7 smaller files"),
    (r"PUT /storage/", "sending 7 smaller files"),
    (COMMIT, "committing"),
]


@pytest.mark.parametrize("where, step", STEPS)
@pytest.mark.parametrize(
    "fault, reason",
    [
        ({"do": "status", "status": 500}, "the Hub answered 500 after 6 tries (injected)"),
        ({"do": "status", "status": 429}, "too many requests (429) after 6 tries"),
        pytest.param({"do": "hang up"}, "the connection broke after 6 tries", marks=pytest.mark.slow),
    ],
    ids=kind,
)
def test_trouble_that_stays(hub, folder, where, step, fault, reason):
    hub.fail(where, times=float("inf"), **fault)
    error = failed_push(folder, private=False, commit_message="As it's now")
    assert step in str(error) and reason in str(error), str(error)
    assert hub.faults[0].seen == 6
    assert NAME not in [name for _, name in hub.repos] or hub.files(NAME) == {}  # nothing half-way
    # The message ends with the command that goes on; when the trouble is over, it does.
    words = shlex.split(str(error).split("to go on: ")[1])
    assert words == ["vss-hf", "push", str(folder), NAME, "--public", "--message", "As it's now"]
    hub.faults.clear()
    push_folder(folder, NAME, private=False)
    assert hub.files(NAME) == contents(folder)


def test_asked_to_wait_too_long(hub, folder):
    hub.fail(COMMIT, status=429, headers={"RateLimit": '"api";r=0;t=4000'}, times=9)
    error = failed_push(folder)
    assert "too many requests (429); the Hub asks to wait 4000 s" in str(error)
    assert hub.faults[0].seen == 1


def test_cut_in_the_middle_then_only_the_rest(hub, sharded):
    """Weights that had arrived are not sent again."""
    shards = sorted(sharded.glob("model-*.safetensors"))
    sizes = [path.stat().st_size for path in shards]
    # The first request to the storage is the picture's, the second the first shard's.
    hub.fail("PUT /storage/", "cut", at=sizes[1] // 2, first=3, times=float("inf"))
    error = failed_push(sharded)
    assert f"sending {shards[1].name}: the connection broke after 6 tries" in str(error)
    assert f"received and not to be sent again: {shards[0].name}" in str(error)
    assert "Not in the repository yet" in str(error) and hub.files(NAME) == {}
    hub.forget()
    push_folder(sharded, NAME)
    assert hub.bytes_received() == sum(sizes[1:])
    assert hub.files(NAME) == contents(sharded)


def test_lost_answer_to_a_pull_request(hub, folder):
    """Asking again could open a second one."""
    push_folder(folder, NAME)
    change_weights(folder)
    hub.fail(COMMIT, "lose answer")
    error = failed_push(folder, create_pr=True)
    assert f"see {hub.url}/{NAME}/discussions first, the pull request may be there" in str(error)
    assert list(hub.repo(NAME).pull_requests) == ["refs/pr/1"]
    hub.fail(COMMIT, status=429)  # refused, so it may be asked for again
    push_folder(folder, NAME, create_pr=True)


def test_an_answer_of_somebody_else(hub, folder, monkeypatch):
    """A proxy's page instead of the Hub's answer."""
    real = hub.respond

    def respond(request, body):
        reply = real(request, body)
        if request.path == "/api/validate-yaml":
            reply.body, reply.headers["Content-Type"] = b"<html>log in</html>", "text/html"
        return reply

    monkeypatch.setattr(hub, "respond", respond)
    assert "gave an answer after 6 tries that is not the Hub's" in str(failed_push(folder))


def test_no_network(hub, folder, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    error = failed_push(folder)
    assert "http://127.0.0.1:9 cannot be reached" in str(error) and "is the network up" in str(error)
    assert hub.waits == []  # at once


def test_offline(hub, folder, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set; unset it to push" in str(failed_push(folder))


def test_a_file_that_changes_meanwhile(hub, folder):
    """Somebody writes the picture after it was sent and before the commit is done: that is noticed."""
    real = hub.commit

    def late(*given, **more):
        (folder / "overlay.jpg").write_bytes(b"\xff\xd8\0new")
        return real(*given, **more)

    hub.commit = late
    with pytest.raises(PushError, match="a file that changed meanwhile. Not in the repository yet: overlay.jpg \\("):
        push_folder(folder, NAME)
    hub.commit = real
    result = push_folder(folder, NAME)
    assert result.sent == ["overlay.jpg"] and hub.files(NAME) == contents(folder)


# --- the command, in processes of its own


def test_the_card_command_says_nothing_else(command, folder):
    result = command("card", folder, "--license", "mit")
    assert (result.code, result.out, result.err) == (0, f"{folder / 'README.md'}\n", "")


def test_command(command, server, folder):
    done = command("push", folder, NAME)
    assert (done.code, done.err) == (0, "")
    lines = done.out.splitlines()
    assert lines[0] == f"{server.url}/{NAME}" and re.search(r"/commit/\w{40}: 8 files sent \(\d+\.\d kB\)$", lines[1])
    assert server.repo(NAME).private and server.files(NAME) == contents(folder)

    change_weights(folder)
    server.forget()
    done = command("push", folder, NAME, "--create_pr", "--message", "Better")
    assert done.code == 0 and f"pull request: {server.url}/{NAME}/discussions/1" in done.out
    assert server.bytes_received() == (folder / "model.safetensors").stat().st_size
    before = fingerprint(folder)
    done = command("push", folder, NAME, HF_ENDPOINT="http://127.0.0.1:9")
    assert done.code == 2 and "cannot be reached" in done.error and "Traceback" not in done.err
    assert fingerprint(folder) == before


@pytest.mark.slow
def test_more_of_the_command(command, server, folder):
    assert command("push", folder, "alice/open", "--public", "--revision", "v1").code == 0
    assert not server.repo("alice/open").private and server.files("alice/open", "v1") == contents(folder)
    change_weights(folder)
    before = fingerprint(folder)
    failures = {
        "there is no token": {"HF_TOKEN": None},
        "does not accept the token (401)": {"HF_TOKEN": "hf_" + "Wrong" * 7},
        "no right to do that (403)": {"HF_TOKEN": OTHER_TOKEN},
        "cannot be reached": {"HF_ENDPOINT": "http://127.0.0.1:9"},
        "HF_HUB_OFFLINE is set": {"HF_HUB_OFFLINE": "1"},
    }
    for message, changes in failures.items():
        done = command("push", folder, "alice/open", "--public", **changes)
        assert done.code == 2 and message in done.error, done.err
        assert "Traceback" not in done.err and "Wrong" not in done.err and "0ther" not in done.err
    assert fingerprint(folder) == before


MOMENTS = [  # (request during which the process is killed, which one of its kind)
    ("PUT /storage/", 3),  # the second shard
    *((step, 1) for step, _ in STEPS),
    ("PUT /storage/", 2),
    ("PUT /storage/", 4),
    ("POST /verify", 1),
    ("POST /api/validate-yaml", 1),
    ("POST .*/paths-info/", 1),
]


@pytest.mark.parametrize(
    "where, number", [MOMENTS[0], *(pytest.param(*moment, marks=pytest.mark.slow) for moment in MOMENTS[1:])]
)
def test_killed_on_the_way(command, server, sharded, where, number):
    """SIGKILL in the middle of a request; the same command then sends what had not arrived."""
    before = fingerprint(sharded)
    server.fail(where, "stall", first=number)
    process = command.start("push", sharded, NAME)
    assert server.stalled.wait(60)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    server.go_on.set()
    assert process.returncode == -signal.SIGKILL and fingerprint(sharded) == before
    arrived = set(server.storage)
    server.forget()
    assert command("push", sharded, NAME).code == 0
    assert server.bytes_received() <= sum(len(data) for sha, data in server.storage.items() if sha not in arrived)
    assert server.files(NAME) == contents(sharded) and server.history(NAME) == ["Upload street", "initial commit"]
