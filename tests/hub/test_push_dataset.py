"""Packed data pushed to a Hub on this machine: what arrives, what is refused, what is sent again, what others read."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys

import datasets
import numpy as np
import pytest
import yaml
from folders import contents, fingerprint
from hub_server import OTHER_TOKEN, TOKEN
from huggingface_hub import DatasetCard
from make_tree import frame_pixels, make_tree, mask_values

from vss_hf.data import VSPW
from vss_hf.data.parquet_writer import write_parquet
from vss_hf.hub_cards import PushError, push_dataset, write_dataset_card
from vss_hf.hub_cards.card_text import KEEP_OPEN
from vss_hf.hub_cards.dataset_card import size_category
from vss_hf.hub_cards.dataset_terms import TERMS, terms_of


NAME = "alice/set"
KIND = "datasets"
COMMIT = "POST /api/datasets/.*/commit/"


def shards(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.glob("data/*.parquet"))


def repacked(export, out, **settings):
    """Another packing of the data that `export` was made of."""
    write_parquet(export.parent / "streets", out, progress=False, **settings)
    return out


@pytest.fixture
def vspw_export(tmp_path):
    """A packed data set with VSPW's classes, from a folder that does not say whose frames it holds."""
    names = dict(zip(VSPW.names, VSPW.disk_ids, strict=True))
    make_tree(tmp_path / "mine", {"train": {"a": [0, 1]}}, names)
    write_parquet(tmp_path / "mine", tmp_path / "mine_packed", progress=False)
    return tmp_path / "mine_packed"


# --- what arrives


def test_new_repository(hub, export):
    before = contents(export)
    result = push_dataset(export, NAME)
    there = hub.files(NAME, kind=KIND)
    assert hub.repo(NAME, KIND).private is True and ("models", NAME) not in hub.repos
    assert len(hub.seen(COMMIT)) == 1 and len(hub.history(NAME, kind=KIND)) == 2
    assert there == contents(export) and there == {**before, "README.md": there["README.md"]}
    assert set(there) == {*shards(export), "README.md", "vss_hf_dataset.json", "label_num_dic_final.json"}
    assert set(result.sent) == set(there) and result.sent_bytes == sum(map(len, there.values()))
    assert hub.bytes_received() == sum(len(there[name]) for name in shards(export))
    assert result.repo_url == f"{hub.url}/datasets/{NAME}"
    assert result.commit_url == f"{hub.url}/datasets/{NAME}/commit/{hub.repo(NAME, KIND).branches['main']}"
    assert hub.history(NAME, kind=KIND)[0] == "Upload set"


def test_again_nothing_is_sent(hub, export):
    first = push_dataset(export, NAME)
    before = fingerprint(export)
    hub.forget()
    result = push_dataset(export, NAME)
    assert not hub.seen("PUT|POST .*(preupload|commit|lfs|create)")
    assert result.sent == [] and result.commit_url == first.commit_url and "nothing changed" in result.lines()[1]
    assert fingerprint(export) == before


def test_branch_and_message(hub, export):
    push_dataset(export, NAME)
    (export / "LICENSE").write_text("Ask first.\n")
    result = push_dataset(export, NAME, revision="v2", commit_message="Add the licence")
    assert result.sent == ["LICENSE"]
    assert hub.files(NAME, "v2", KIND)["LICENSE"] == b"Ask first.\n"
    assert "LICENSE" not in hub.files(NAME, kind=KIND)
    assert hub.history(NAME, "v2", KIND)[0] == "Add the licence"


def test_shards_of_an_earlier_export_go_in_the_same_commit(hub, export, whole_export, tmp_path):
    """`datasets` would go on reading them beside the new ones, without a word."""
    push_dataset(export, NAME)
    larger = repacked(whole_export, tmp_path / "larger", splits=["train", "val"])
    old = set(shards(export)) - set(shards(larger))
    result = push_dataset(larger, NAME)
    assert old and set(result.removed) == old
    assert len(hub.history(NAME, kind=KIND)) == 3
    assert hub.files(NAME, kind=KIND) == contents(larger)


def test_other_files_stay_here(hub, export):
    for name in (".vss_hf/scan.jsonl", "data/train-00000-of-00009.parquet", "notes.txt", "data/x.parquet.part"):
        (export / name).parent.mkdir(exist_ok=True)
        (export / name).write_text("x")
    result = push_dataset(export, NAME)
    assert len(result.left_out) == 4 and not set(result.left_out) & set(hub.files(NAME, kind=KIND))


# --- the card


def test_the_card_says_what_there_is(export):
    card = DatasetCard.load(write_dataset_card(export, repo_id=NAME))
    head = yaml.safe_load(card.content.split("---\n")[1])
    assert head["task_categories"] == ["image-segmentation"] and head["size_categories"] == ["n<1K"]
    assert head["license"] == "unknown" and head["pretty_name"] == "set"
    files = {entry["split"]: entry["path"] for entry in head["configs"][0]["data_files"]}
    assert files == {split: f"data/{split}-*.parquet" for split in ("train", "val", "test")}
    assert [(s["name"], s["num_examples"]) for s in head["dataset_info"]["splits"]] == [
        ("train", 15), ("val", 5), ("test", 2),
    ]  # fmt: skip
    assert "| train | 5 | 15 | 15 |" in card.text and "| test | 1 | 2 | 0 |" in card.text
    for label, value, name in ((0, 1, "road"), (1, 2, "sky"), (2, 5, "tree")):
        assert f"| {label} | {value} | {name} |" in card.text
    assert "others" not in card.text
    for name, digest in fingerprint(export).items():
        assert (f"| {name} | {(export / name).stat().st_size} | `{digest}` |" in card.text) == (name in shards(export))
    assert not re.search(r"(?<![\w:])/(root|home|tmp|work)\b", card.content)


def test_a_long_class_list_is_folded(vspw_export):
    text = write_dataset_card(vspw_export).read_text()
    assert "<summary>The 124 classes</summary>" in text and "| 123 | 124 | train |" in text
    assert "license: other\n" in text and "license_name: vspw-research-only" in text
    assert TERMS["vspw"].notice in text


def test_the_card_keeps_notes_options_and_hands(hub, export):
    path = write_dataset_card(export, license="cc-by-4.0", title="Streets", description="By day.")
    path.write_text(path.read_text().replace(f"{KEEP_OPEN}\n\n", f"{KEEP_OPEN}\nMy notes.\n"))
    push_dataset(export, NAME)
    text = path.read_text()
    assert hub.files(NAME, kind=KIND)["README.md"] == text.encode()
    assert "license: cc-by-4.0" in text and "# Streets" in text and "My notes." in text and f'"{NAME}"' in text

    path.write_text(text.replace("By day.", "By night."))
    before = fingerprint(export)
    with pytest.warns(UserWarning, match="edited by hand"):
        push_dataset(export, NAME)
    assert b"By night." in hub.files(NAME, kind=KIND)["README.md"] and fingerprint(export) == before
    with pytest.warns(UserWarning, match=r"README\.previous\.md"):
        write_dataset_card(export)
    assert "By night." in (export / "README.previous.md").read_text()


@pytest.mark.slow
def test_the_card_command(command, export):
    done = command("card", export, "--license", "cc0-1.0", "--repo-id", NAME)
    assert done.code == 0 and done.out.strip() == str(export / "README.md")
    assert "license: cc0-1.0" in (export / "README.md").read_text()


@pytest.mark.parametrize(
    ("rows", "word"), [(1, "n<1K"), (999, "n<1K"), (1000, "1K<n<10K"), (251_633, "100K<n<1M"), (10**9, "1B<n<10B")]
)
def test_size_category(rows, word):
    assert size_category(rows) == word


# --- rights


def test_vspw_stays_private(hub, vspw_export):
    with pytest.raises(ValueError, match="VSPW.*non-commercial research licence.*re-hosted publicly.*--rights"):
        push_dataset(vspw_export, NAME, private=False)
    assert hub.requests == []
    with pytest.warns(UserWarning, match="may not be re-hosted publicly.*keep the repository private"):
        push_dataset(vspw_export, NAME)
    assert hub.repo(NAME, KIND).private is True


def test_with_a_reason_it_may_be_public(hub, vspw_export):
    with pytest.warns(UserWarning, match="on the ground of: own recordings"):
        push_dataset(vspw_export, NAME, private=False, rights="own recordings")
    assert hub.repo(NAME, KIND).private is False
    assert "the one who pushed them says: own recordings." in hub.files(NAME, kind=KIND)["README.md"].decode()


def test_own_data_may_be_public(hub, export, recwarn):
    push_dataset(export, NAME, private=False)
    assert hub.repo(NAME, KIND).private is False
    assert not [warning for warning in recwarn if issubclass(warning.category, UserWarning)]
    with pytest.raises(PushError, match="it is public, and the push was to be private; allow it with --public, or"):
        push_dataset(export, NAME)


def test_uncertain_terms_are_told_before_publishing(hub, export, tmp_path, recwarn):
    """Nothing forbids it, and nobody here knows that it is allowed."""
    index = export / "vss_hf_dataset.json"
    index.write_text(index.read_text().replace('"name": "streets"', '"name": "camvid_vspw"'))
    push_dataset(export, "alice/mine")
    assert not [warning for warning in recwarn if issubclass(warning.category, UserWarning)]
    with pytest.warns(UserWarning, match="no licence of it is known here.*whether you may publish them is for you to"):
        push_dataset(export, "alice/open", private=False)
    assert hub.repo("alice/open", KIND).private is False


@pytest.mark.parametrize(
    ("source", "name", "whose"),
    [
        ("vspw", "VSPW_480p", "VSPW"), ("vspw", "camvid_vspw", "CamVid"), ("vspw", "mine", None), ("", "mine", None),
        ("vipseg", "x", "VIPSeg"), ("coco_stuff10k", "x", "COCO-Stuff"), ("vspw", "My-Cityscapes", "Cityscapes"),
    ],
)  # fmt: skip
def test_whose_frames(source, name, whose):
    found = terms_of(source, name, ["road"])
    assert (found.name if found else None) == whose


# --- what is refused, before anything is asked of the Hub


@pytest.mark.parametrize("broken", ["changed", "cut", "missing", "no index", "bad index", "outside", "text"])
def test_no_whole_export(hub, export, broken):
    shard = export / shards(export)[2]
    index = export / "vss_hf_dataset.json"
    if broken == "changed":
        data = bytearray(shard.read_bytes())
        data[1000] ^= 1
        shard.write_bytes(data)
    elif broken == "cut":
        shard.write_bytes(shard.read_bytes()[:-1])
    elif broken == "missing":
        shard.unlink()
    elif broken == "no index":
        index.unlink()
    elif broken == "bad index":
        index.write_text('{"format_version": 1, "shards": [{}], "splits": {}}')
    elif broken == "outside":
        index.write_text(index.read_text().replace('"file": "data/', '"file": "../data/'))
    else:
        (export / "LICENSE").write_text(f"token {TOKEN}")
    with pytest.raises((ValueError, FileNotFoundError)) as failure:
        push_dataset(export, NAME)
    named = {"changed": shard, "cut": shard, "missing": shard, "text": "LICENSE"}.get(broken, "vss_hf_dataset.json")
    assert str(named) in str(failure.value) and TOKEN not in str(failure.value)
    assert hub.requests == []


def test_a_model_folder_is_no_export(hub, folder, export):
    with pytest.raises(FileNotFoundError, match="vss_hf_dataset.json.*vss-hf data parquet"):
        push_dataset(folder, NAME)
    assert hub.requests == []


# --- when it does not work


def test_an_interrupted_push_goes_on(hub, export):
    """Shards that had arrived are not sent again, by the bytes that the server received."""
    names = shards(export)
    before = fingerprint(export)
    hub.fail("PUT /storage/", "status", status=400, first=3, times=100)
    with pytest.raises(PushError) as failure:
        push_dataset(export, NAME)
    assert fingerprint(export) == before
    text = str(failure.value)
    assert "received and not to be sent again: data/" in text
    assert text.endswith(f"vss-hf data push {export} {NAME}") and TOKEN not in text
    assert len(hub.history(NAME, kind=KIND)) == 1  # nothing half done is to be seen
    assert len(hub.storage) == 2
    arrived = sum(map(len, hub.storage.values()))
    hub.forget()
    push_dataset(export, NAME)
    total = sum((export / name).stat().st_size for name in names)
    assert hub.bytes_received() == total - arrived
    assert hub.files(NAME, kind=KIND) == contents(export)


def test_killed_while_a_shard_is_sent(server, command, export):
    server.fail("PUT /storage/", "stall", first=4)
    process = command.start("data", "push", export, NAME)
    assert server.stalled.wait(60)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    server.go_on.set()
    arrived = sum(map(len, server.storage.values()))
    server.forget()
    done = command("data", "push", export, NAME)
    assert done.code == 0, done.err
    assert server.bytes_received() <= sum((export / name).stat().st_size for name in shards(export)) - arrived
    assert len(server.history(NAME, kind=KIND)) == 2 and server.files(NAME, kind=KIND) == contents(export)


@pytest.mark.parametrize("where", ["preupload", "lfs/objects/batch", "PUT /storage", "/verify", "/commit/", "/tree/"])
def test_a_passing_fault_at_each_step(hub, export, where):
    hub.fail(where, "status", status=503, times=2)
    push_dataset(export, NAME)
    assert len(hub.history(NAME, kind=KIND)) == 2 and hub.files(NAME, kind=KIND) == contents(export)


@pytest.mark.slow
def test_the_printed_command_goes_on(hub, command, vspw_export, monkeypatch):
    hub.fail(COMMIT, "status", status=500, times=100)
    with pytest.warns(UserWarning), pytest.raises(PushError) as failure:
        push_dataset(
            vspw_export, NAME, private=False, rights="own frames", revision="v1", commit_message="First", token=TOKEN
        )
    hub.forget()
    words = shlex.split(str(failure.value).split("to go on: ")[1])
    assert words[:3] == ["vss-hf", "data", "push"]
    done = command(*words[1:])
    assert done.code == 0 and "commit/" in done.out, done.err
    assert hub.bytes_received() == 0  # the shard was there
    assert hub.history(NAME, "v1", KIND)[0] == "First" and hub.repo(NAME, KIND).private is False


def test_refusals(hub, command, export, vspw_export):
    done = command("data", "push", vspw_export, NAME, "--public")
    assert done.code == 2 and "re-hosted publicly" in done.error and hub.requests == []
    with pytest.raises(PushError, match=r"no right to do that \(403\)"):
        push_dataset(export, "bob/set")
    with pytest.raises(PushError, match="does not accept the token") as failure:
        push_dataset(export, NAME, token="hf_" + "bad0" * 9)
    assert "bad0" not in str(failure.value)
    with pytest.raises(FileNotFoundError, match="no vss_hf_dataset.json"):
        push_dataset(export.parent, NAME)


# --- read back without vss_hf


def check_read_back(splits) -> None:
    """All frames and masks are there, in order, with the pixels that `make_tree` gave them."""
    assert {name: len(list(rows)) for name, rows in splits.items()} == {"train": 15, "val": 5, "test": 2}
    for split, rows in splits.items():
        assert [(row["video"], row["index"]) for row in rows] == sorted((row["video"], row["index"]) for row in rows)
        for row in rows:
            place = row["video"], row["index"]
            assert row["frame"] == f"{row['index']:08d}"
            assert np.array_equal(np.asarray(row["image"]), frame_pixels(*place))
            assert (row["mask"] is None) == (split == "test")
            assert row["mask"] is None or np.array_equal(np.asarray(row["mask"]), mask_values(*place))


@pytest.mark.parametrize("streaming", [False, True])
def test_plain_datasets_reads_it(hub, export, tmp_path, monkeypatch, streaming, caplog):
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", hub.url)
    push_dataset(export, NAME)
    check_read_back(datasets.load_dataset(NAME, cache_dir=str(tmp_path / "arrow"), streaming=streaming))
    assert not [record for record in caplog.records if "card" in record.message]  # "... malformed"


@pytest.mark.slow
def test_it_is_read_without_this_package(hub, export, tmp_path):
    push_dataset(export, NAME)
    code = "import sys, datasets; print(datasets.load_dataset(sys.argv[1])); assert 'vss_hf' not in sys.modules"
    done = subprocess.run(
        [sys.executable, "-c", code, NAME], env=os.environ, capture_output=True, text=True, timeout=120, cwd=tmp_path
    )
    assert done.returncode == 0 and "num_rows: 15" in done.stdout, done.stderr[-3000:]
    assert "malformed" not in done.stderr and "Ignoring" not in done.stderr


@pytest.mark.slow
def test_the_blocks_of_the_card_run(hub, export, tmp_path):
    push_dataset(export, NAME)
    blocks = re.findall(r"```python\n(.*?)```", (export / "README.md").read_text(), re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        done = subprocess.run(
            [sys.executable, "-c", block], env=os.environ, capture_output=True, text=True, timeout=120, cwd=tmp_path
        )
        assert done.returncode == 0, done.stderr[-3000:]
        assert "train" in done.stdout and "23" in done.stdout  # the width


def test_the_folder_is_read_where_it_lies(export, tmp_path, monkeypatch):
    """The card of a folder makes `load_dataset` find its splits, too."""
    write_dataset_card(export)
    shutil.rmtree(tmp_path / "arrow", ignore_errors=True)
    monkeypatch.chdir(export.parent)
    frames = datasets.load_dataset("export", split="val", cache_dir=str(tmp_path / "arrow"))
    assert [row["video"] for row in frames] == ["val0"] * 2 + ["val1"] * 3


def test_no_token_is_told_in_the_messages(hub, export):
    hub.fail(COMMIT, "status", status=400, message=f"bad {TOKEN} {OTHER_TOKEN}", times=9)
    with pytest.raises(PushError) as failure:
        push_dataset(export, NAME)
    assert TOKEN not in str(failure.value) and OTHER_TOKEN not in str(failure.value)
