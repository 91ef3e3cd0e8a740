"""The sample of the fuzzing campaign that every test run includes, and the checks that a campaign finds faults."""

from __future__ import annotations

from pathlib import Path

from tests.fuzz import (
    artifact_inputs,
    campaign,
    file_bundle,
    gguf_inputs,
    hugging_face_inputs,
    probe_inputs,
    store_inputs,
)
from tests.fuzz.faulty_readers import FAULTY_BYTE
from tests.fuzz.harnesses import HARNESSES
from tests.fuzz.oracle import Oracle

NUM_INPUTS = 2_400


def test_mutated_files_are_refused_or_read(tmp_path: Path) -> None:
    report = campaign.run(campaign.shares(NUM_INPUTS), save_to=tmp_path / "faults")
    assert not report.faults, str(report)
    assert report.num_inputs >= 2_000, str(report)
    for reader, outcomes in report.outcomes.items():
        assert outcomes["accepted"] > 0, f"no input of {reader} gets past the first checks\n{report}"
        assert outcomes.total() > outcomes["accepted"], f"no input of {reader} is wrong\n{report}"


def test_inputs_follow_from_reader_and_number() -> None:
    for reader in HARNESSES:
        first = [campaign.make_input(reader, seed) for seed in range(5)]
        assert first == [campaign.make_input(reader, seed) for seed in range(5)], reader
        assert len(set(first)) > 1, f"every input of {reader} is the same"


def test_inputs_of_one_reader_do_not_reach_the_next(tmp_path: Path) -> None:
    oracle = Oracle(tmp_path)
    assert oracle.judge(HARNESSES["hf_folder"], hugging_face_inputs.valid_folder("plain")).outcome == "accepted"
    nothing = file_bundle.pack([None] * len(artifact_inputs.FILES))
    assert oracle.judge(HARNESSES["artifact"], nothing).outcome == "FormatError"


def test_artifacts_are_the_same_in_every_process() -> None:
    assert b'"modified_ns": 0' in artifact_inputs.valid_artifact(0)


def test_files_without_a_fault_are_read(tmp_path: Path) -> None:
    oracle = Oracle(tmp_path)
    valid = {
        "gguf": gguf_inputs.valid_model(0),
        "gguf_model": gguf_inputs.valid_model(1),
        "gguf_run": gguf_inputs.valid_model(2),
        "gguf_split": gguf_inputs.valid_split(0),
        "artifact": artifact_inputs.valid_artifact(0),
        "artifact_run": artifact_inputs.valid_artifact(1),
        "tokenizer_file": artifact_inputs.valid_tokenizer(2),
        "hf_folder": hugging_face_inputs.valid_folder("sharded"),
        "stores": store_inputs.valid_stores(),
        "probe": probe_inputs.valid_probe(),
    }
    outcomes = {reader: oracle.judge(HARNESSES[reader], data).outcome for reader, data in valid.items()}
    for kind in hugging_face_inputs.KINDS:
        outcomes[kind] = oracle.judge(HARNESSES["hf_folder"], hugging_face_inputs.valid_folder(kind)).outcome
    assert set(outcomes.values()) == {"accepted"}, outcomes


def test_a_campaign_finds_faults(tmp_path: Path) -> None:
    table = "tests.fuzz.faulty_readers"
    counts = {"right_error": 8, "wrong_error": 8, "crash": 8, "hang": 3, "slow": 12, "wasteful": 32, "wordy": 8}
    report = campaign.run(counts, save_to=tmp_path, table=table, max_silence_s=10.0)
    found = {fault.reader: fault for fault in report.faults}
    assert set(found) == set(counts) - {"right_error"}, str(report)
    assert report.num_inputs == sum(counts.values())
    assert "KeyError" in found["wrong_error"].description
    assert "process ended" in found["crash"].description
    assert "processor time" in found["slow"].description
    assert "allocates" in found["wasteful"].description
    assert "characters" in found["wordy"].description
    for fault in report.faults:
        assert fault.saved.read_bytes() == bytes([FAULTY_BYTE]), fault


def test_bundles_keep_files_and_survive_any_bytes() -> None:
    contents = [b"a", None, b"", b"four"]
    assert file_bundle.unpack(file_bundle.pack(contents), 4) == contents
    assert file_bundle.unpack(b"\x05\x00\x00\x00ab", 2) == [b"ab", None]
    assert file_bundle.unpack(b"", 2) == [None, None]
