"""convert(calibrate=...): a better model, the same bytes however often it was interrupted, or one sentence."""

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import golden
import numpy as np
import pytest
import tiny_checkpoint
from tiny_checkpoint import official_tensors, write_checkpoint

from glmcpu import Model, cli, formats, memory, packed
from glmcpu.convert import calibrate as calibration
from glmcpu.convert import convert, work_folder
from glmcpu.errors import DataError, GlmcpuError, MachineError, Notice, UsageError
from glmcpu.packed import PackedFile

WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "你好", "天气", "很好", "今天"]
GROUPED = [name for name in formats.names() if formats.is_grouped(name)]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "source")


@pytest.fixture
def text(tmp_path: Path) -> Path:
    return write_text(tmp_path / "text.jsonl", 16, seed=0)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    (tmp_path / "models").mkdir()
    return tmp_path / "models" / "model.safetensors"


def write_text(path: Path, lines: int, seed: int) -> Path:
    random = np.random.default_rng(seed)

    def words(n: int) -> str:
        return " ".join(random.choice(WORDS, n))

    examples = [{"prompt": words(5), "response": words(7), "history": [[words(2), words(3)]]} for _ in range(lines)]
    path.write_text("".join(json.dumps(example, ensure_ascii=False) + "\n" for example in examples), encoding="utf-8")
    return path


def error_of(file: Path, exact: Model, text: Path) -> float:
    """Squared change of the scores, their mean taken away, in relation to them."""
    model, change, whole = Model.load(file, backend="reference"), 0.0, 0.0
    for line in text.read_text(encoding="utf-8").splitlines():
        ids = exact.tokenizer.encode(json.loads(line)["prompt"])  # type: ignore[union-attr]
        theirs, ours = (m.logits(ids) - m.logits(ids).mean(axis=1, keepdims=True) for m in (exact, model))
        change, whole = change + float(((ours - theirs) ** 2).sum()), whole + float((theirs**2).sum())
    return change / whole


@pytest.mark.parametrize("weights", GROUPED)
def test_scores_change_less_than_by_rounding_to_nearest(
    weights: str, checkpoint: Path, text: Path, tmp_path: Path, target: Path
) -> None:
    exact = Model.load(convert(checkpoint, tmp_path / "f32.safetensors", weights="f32"), backend="reference")
    other_text = write_text(tmp_path / "other.jsonl", 6, seed=1)
    plain = error_of(convert(checkpoint, target, weights=weights), exact, other_text)
    calibrated = convert(checkpoint, target, weights=weights, calibrate=text)
    assert error_of(calibrated, exact, other_text) < 0.99 * plain
    assert packed.verify(calibrated).contents.formats == dict.fromkeys(PackedFile(calibrated).formats, weights)
    assert golden.listing(target.parent).keys() == {target.name}
    assert not list(target.parent.glob(".*"))


def test_vectors_and_tokenizer_stay_and_the_text_is_recorded(
    checkpoint: Path, text: Path, target: Path, tmp_path: Path
) -> None:
    plain = PackedFile(convert(checkpoint, tmp_path / "plain.safetensors"))
    file = PackedFile(convert(checkpoint, target, calibrate=text))
    for name in file.tensors():
        if name.endswith((".bias", ".scale", ".shift")) or name == "tokenizer":
            assert file.raw(name).tobytes() == plain.raw(name).tobytes()
        else:
            assert file.raw(name).shape == plain.raw(name).shape
    note = file.contents.source["calibration"]
    assert note["file"] == "text.jsonl"
    assert len(note["sha256"]) == 64
    assert note["tokens"] > 300


def test_same_call_gives_the_same_bytes_whatever_the_threads(
    checkpoint: Path, text: Path, target: Path, on_threads: Any
) -> None:
    on_threads(lambda: np.frombuffer(convert(checkpoint, target, calibrate=text).read_bytes(), np.uint8))


def test_packed_model_is_calibrated_as_its_checkpoint(
    checkpoint: Path, text: Path, target: Path, tmp_path: Path
) -> None:
    exact = convert(checkpoint, tmp_path / "tiny-f16.safetensors", weights="f16")
    direct = golden.tensors(convert(checkpoint, target, calibrate=text))
    assert golden.tensors(convert(exact, target, calibrate=text)) == direct


def test_embedding_of_an_untied_model_is_rounded_alone_and_its_lm_head_by_the_text(
    text: Path, target: Path, tmp_path: Path
) -> None:
    tensors = official_tensors()
    head = official_tensors(seed=1)["transformer.word_embeddings.weight"]
    folder = write_checkpoint(
        tmp_path / "untied", tensors=tensors | {"lm_head.weight": head}, tie_word_embeddings=False
    )
    plain = golden.tensors(convert(folder, tmp_path / "plain.safetensors"))
    calibrated = golden.tensors(convert(folder, target, calibrate=text))
    assert calibrated["embedding.codes"] == plain["embedding.codes"]
    assert calibrated["lm_head.codes"] != plain["lm_head.codes"]


def test_official_quantized_checkpoint_is_calibrated_by_the_weights_it_stands_for(
    text: Path, target: Path, tmp_path: Path
) -> None:
    tensors: dict[str, Any] = {}
    for name, array in official_tensors().items():
        tensors[name] = array
        if ".layers." in name and array.ndim == 2:
            scale = np.abs(array).max(axis=1).astype(np.float32) / 127
            tensors[name] = np.rint(array / scale[:, None]).astype(np.int8)
            tensors[f"{name}_scale"] = scale.astype(np.float16)
    folder = write_checkpoint(tmp_path / "quantized", tensors=tensors, quantization_bit=8)
    packed.verify(convert(folder, target, calibrate=text))


# --- interrupted ---

STAGES = ("layer 1 of 2", "layer 2 of 2", "output matrix", "converting", "checking")


def stopped(checkpoint: Path, target: Path, text: Path, stage: str, after: int = 1, **options: Any) -> None:
    """A run that ends at the `after`-th report of a stage."""
    seen = []

    def interrupt(now: str, done: int, total: int) -> None:
        seen.append(stage in now)
        if sum(seen) == after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(checkpoint, target, calibrate=text, progress=interrupt, **options)


@pytest.mark.parametrize("stage", STAGES)
def test_run_that_was_interrupted_goes_on_and_ends_with_the_same_bytes(
    stage: str, checkpoint: Path, text: Path, target: Path, tmp_path: Path
) -> None:
    whole = convert(checkpoint, tmp_path / "whole.safetensors", calibrate=text).read_bytes()
    stopped(checkpoint, target, text, stage)
    assert golden.listing(target.parent) == {}
    reports: list[tuple[str, int, int]] = []
    with warnings.catch_warnings(record=True) as notices:
        warnings.simplefilter("always")
        convert(checkpoint, target, calibrate=text, progress=lambda *report: reports.append(report))
    assert target.read_bytes() == whole
    assert [p.name for p in target.parent.iterdir()] == [target.name]
    done = {"layer 1 of 2": 0, "layer 2 of 2": 1}.get(stage, 2)
    assert [f"after layer {done}" in str(notice.message) for notice in notices] == [True] * bool(done)
    stages = {stage for stage, *_ in reports}
    assert ("calibrating layer 1 of 2" in stages) == (done < 1)
    assert ("calibrating layer 2 of 2" in stages) == (done < 2)


def test_run_interrupted_at_every_report_in_turn_ends_with_the_same_bytes(
    checkpoint: Path, text: Path, target: Path, tmp_path: Path
) -> None:
    whole = convert(checkpoint, tmp_path / "whole.safetensors", calibrate=text).read_bytes()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Notice)
        for after in (2, 5, 9):
            stopped(checkpoint, target, text, "calibrating", after)
        assert convert(checkpoint, target, calibrate=text).read_bytes() == whole


def test_progress_grows_to_the_whole(checkpoint: Path, text: Path, target: Path) -> None:
    reports: list[tuple[int, int]] = []

    def progress(stage: str, done: int, total: int) -> None:
        if stage.startswith("calibrating"):
            reports.append((done, total))

    convert(checkpoint, target, calibrate=text, progress=progress)
    done, totals = zip(*reports, strict=True)
    assert list(done) == sorted(done)
    assert set(totals) == {done[-1]}


def test_work_of_other_inputs_is_begun_anew(checkpoint: Path, text: Path, target: Path, tmp_path: Path) -> None:
    other = write_text(tmp_path / "other.jsonl", 16, seed=5)
    whole = convert(checkpoint, tmp_path / "whole.safetensors", calibrate=other).read_bytes()
    stopped(checkpoint, target, text, "layer 2 of 2")
    with pytest.warns(Notice, match="another calibration"):
        convert(checkpoint, target, calibrate=other)
    assert target.read_bytes() == whole


@pytest.mark.parametrize("change", ["weights", "tokens", "checkpoint"])
def test_work_goes_on_only_where_nothing_has_changed(change: str, checkpoint: Path, text: Path, target: Path) -> None:
    stopped(checkpoint, target, text, "layer 2 of 2")
    options: dict[str, Any] = {"calibrate": text}
    if change == "weights":
        options["weights"] = "int4_g64"
    elif change == "tokens":
        options["calibration_tokens"] = 300
    else:
        write_checkpoint(checkpoint, tensors=official_tensors(seed=3))
    with pytest.warns(Notice, match="another calibration"):
        convert(checkpoint, target, **options)


def test_earlier_model_stays_until_the_new_one_is_whole(checkpoint: Path, text: Path, target: Path) -> None:
    before = convert(checkpoint, target, weights="f16").read_bytes()
    stopped(checkpoint, target, text, "layer 2 of 2")
    assert target.read_bytes() == before


def test_file_cut_off_in_the_work_folder_is_named(checkpoint: Path, text: Path, target: Path) -> None:
    stopped(checkpoint, target, text, "output matrix")
    (target.parent / ".model.safetensors.calibration" / "layers.0.qkv").write_bytes(b"cut")
    with pytest.raises(DataError, match="cut off"), pytest.warns(Notice, match="goes on"):
        convert(checkpoint, target, calibrate=text)


def test_residual_cut_off_in_the_work_folder_does_not_count(
    checkpoint: Path, text: Path, target: Path, tmp_path: Path
) -> None:
    whole = convert(checkpoint, tmp_path / "whole.safetensors", calibrate=text).read_bytes()
    stopped(checkpoint, target, text, "layer 2 of 2")
    (target.parent / ".model.safetensors.calibration" / "residual-1").write_bytes(b"cut")
    assert convert(checkpoint, target, calibrate=text).read_bytes() == whole


def test_two_runs_do_not_calibrate_one_target_at_once(checkpoint: Path, text: Path, target: Path) -> None:
    def second(stage: str, done: int, total: int) -> None:
        with pytest.raises(MachineError, match="another glmcpu"):
            convert(checkpoint, target, calibrate=text)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(checkpoint, target, calibrate=text, progress=second)


@pytest.mark.parametrize("n", [0, 3, 6])
def test_disk_that_is_full_leaves_the_target_and_what_is_done(
    n: int, checkpoint: Path, text: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep, calls = work_folder.WorkFolder.keep, []

    def full(self: Any, matrix: str, arrays: Any) -> None:
        calls.append(matrix)
        if len(calls) > n:
            with work_folder.files.atomic_write(self.path / matrix):
                raise OSError(28, "No space left on device")
        keep(self, matrix, arrays)

    monkeypatch.setattr(work_folder.WorkFolder, "keep", full)
    with pytest.raises(MachineError, match="no space left"):
        convert(checkpoint, target, calibrate=text)
    assert golden.listing(target.parent) == {}
    left = {path.name for path in target.parent.rglob("*") if path.is_file()}
    assert left >= {"key", *(["residual-1"] if n > 3 else [])}


# --- refused ---


def refused(kind: type[GlmcpuError], *arguments: Any, **options: Any) -> str:
    with pytest.raises(kind) as error:
        convert(*arguments, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_too_little_memory_is_said_before_the_work(
    checkpoint: Path, text: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda: 1000)
    assert "--calibration-tokens" in refused(MachineError, checkpoint, target, calibrate=text)
    assert not list(target.parent.iterdir())


def test_chatglm_6b_with_the_default_text_needs_less_than_six_gigabytes(monkeypatch: pytest.MonkeyPatch) -> None:
    from glmcpu.models.chatglm import Config

    config = Config(130528, 4096, 28, 32, 16384, 1e-5, 2048, 2, 1, 2, 3, 4, 5, 0, True)
    monkeypatch.setattr(memory, "available_bytes", lambda: 6_000_000_000)
    calibration.require_memory(config, 8192)
    with pytest.raises(MachineError):
        calibration.require_memory(config, 100_000)


def test_few_tokens_for_a_wide_matrix_are_told(target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiny_checkpoint, "F", 512)
    text = write_text(tmp_path / "short.jsonl", 3, seed=0)
    with pytest.warns(Notice, match="tokens to calibrate with"):
        convert(write_checkpoint(tmp_path / "wide"), target, calibrate=text)


def test_text_of_the_first_sequences_that_fit_is_read(checkpoint: Path, text: Path, target: Path) -> None:
    tokens = PackedFile(convert(checkpoint, target, calibrate=text, calibration_tokens=200)).contents.source
    assert 128 <= tokens["calibration"]["tokens"] <= 200


@pytest.mark.parametrize("tokens", [0, 127, -1, 1.5, "9"])
def test_number_of_tokens_is_checked(tokens: Any, checkpoint: Path, text: Path, target: Path) -> None:
    assert "128" in refused(UsageError, checkpoint, target, calibrate=text, calibration_tokens=tokens)


def command(*arguments: object) -> list[str]:
    return ["convert", *map(str, arguments)]


@pytest.mark.parametrize(
    ("content", "options", "code", "facts"),
    [
        ("good", ["--weights", "int8"], 2, ["int8", "int4_g32"]),
        ("good", ["--weights", "f16"], 2, ["f16", "int4_g32"]),
        ("good", ["--calibration-tokens", "12"], 2, ["12", "128"]),
        ("good", ["--calibration-tokens", "many"], 2, ["many"]),
        (b"", [], 3, ["text.jsonl", "empty"]),
        (b'{"prompt": "one"}\n', [], 3, ["line 1", "response"]),
        (b'{"prompt": "one", "response": "two"}\nnonsense\n', [], 3, ["line 2"]),
        (b'{"prompt": "one", "response": "\xff"}\n', [], 3, ["line 1", "UTF-8"]),
        (b'{"prompt": "one", "response": "two"}\n', [], 3, ["tokens", "128"]),
        (json.dumps({"prompt": "one two " * 200, "response": "two"}).encode(), ["--calibration-tokens", "128"], 2,
         ["line 1", "--calibration-tokens"]),
    ],
    ids=["format", "exact", "few", "word", "empty", "no-answer", "no-json", "encoding", "short", "long"],
)  # fmt: skip
def test_wrong_requests_and_texts_get_one_line(
    content: Any, options: list[str], code: int, facts: list[str], checkpoint: Path, text: Path, target: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    if content != "good":
        text.write_bytes(content)
    assert cli.main(command(checkpoint, target, "--calibrate", text, *options)) == code
    line = capsys.readouterr().err.rstrip("\n")
    assert "\n" not in line
    for fact in facts:
        assert fact in line
    assert not list(target.parent.iterdir())


def test_text_that_is_not_there_is_named(
    checkpoint: Path, target: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(command(checkpoint, target, "--calibrate", tmp_path / "none.txt")) == 3
    assert "none.txt" in capsys.readouterr().err


def test_model_without_tokenizer_cannot_read(
    text: Path, target: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_checkpoint(tmp_path / "mute", tokenizer=False)
    assert cli.main(command(folder, target, "--calibrate", text)) == 2
    assert "--tokenizer" in capsys.readouterr().err


def test_tokens_without_a_text_are_refused(checkpoint: Path, target: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(command(checkpoint, target, "--calibration-tokens", "500")) == 2
    assert "--calibrate FILE" in capsys.readouterr().err


def test_command_shows_the_layers_and_the_result(
    checkpoint: Path, text: Path, target: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(command(checkpoint, target, "--calibrate", text)) == 0
    shown = capsys.readouterr()
    assert "layer 2 of 2" in shown.err
    assert "left" in shown.err
    assert target.name in shown.out


def test_inputs_that_are_not_finite_are_refused_with_the_matrix(text: Path, target: Path, tmp_path: Path) -> None:
    tensors = official_tensors()
    tensors["transformer.layers.1.mlp.dense_h_to_4h.bias"] = np.full(64, 3e38, np.float32)
    folder = write_checkpoint(tmp_path / "wild", tensors=tensors)
    assert "layers.1.mlp_down" in refused(DataError, folder, target, calibrate=text)


def test_source_folder_is_only_read(checkpoint: Path, text: Path, target: Path) -> None:
    before = golden.listing(shutil.copytree(checkpoint, checkpoint.parent / "copy"))
    convert(checkpoint, target, calibrate=text)
    assert golden.listing(checkpoint) == before
