"""The evaluator on a network whose answers are known, in one process and in two."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from colour_network import CLASSES, ColourNetwork, colour_sample
from torch import nn

from cosa_dist.config.schema import CrfConfig, EvaluationConfig, RunConfig
from cosa_dist.data.reading.loader import EvalSample
from cosa_dist.evaluation.evaluator import Evaluator, with_crf
from cosa_dist.evaluation.intervals import ImageCounts
from cosa_dist.evaluation.report import EvalReport
from cosa_dist.lattice.dense_crf import CRF_SETTINGS, DenseCrf
from jobs.evaluate import parse
from tests.support.ranks import run_ranks


def changed(config: EvaluationConfig, **changes: object) -> EvaluationConfig:
    return config.model_copy(update=changes)


PLAIN = changed(EvaluationConfig(), size=8, scales=(1.0,), batch_size=2)


def one_image() -> EvalSample:
    """Red left half (labelled); on the right 4 weakly green and 6 clearly blue pixels, untrue."""
    image = torch.zeros(3, 8, 8, dtype=torch.uint8)
    image[0, :, :4] = 255
    image[1, :4, 4] = 76
    image[2, :6, 5] = 204
    mask = torch.zeros(8, 8, dtype=torch.uint8)
    mask[:, :4] = 1
    context = torch.zeros(8, 8, dtype=torch.uint8)
    context[:2, 3:7] = 1
    return colour_sample("one", image, mask, [1], context)


def many_images(count: int) -> list[EvalSample]:
    """Random colours of several sizes with random masks that have ignored pixels."""
    generator = torch.Generator().manual_seed(3)
    samples = []
    for number in range(count):
        size = (6 + number, 9)
        image = torch.randint(0, 200, (3, *size), generator=generator, dtype=torch.uint8)
        mask = torch.randint(0, 5, size, generator=generator, dtype=torch.uint8)
        present = [c for c in (1, 2, 3) if (number + c) % 3]
        samples.append(colour_sample(f"image-{number}", image, mask.masked_fill(mask == 4, 255), present))
    return samples


def run(samples: list[EvalSample], config: EvaluationConfig = PLAIN, **how: object) -> EvalReport:
    return Evaluator(CLASSES, config, **how).evaluate({"online": ColourNetwork()}, samples)["online"]


def test_protocols_by_hand():
    report = run([one_image()])
    # 32 red pixels and 32 background pixels, of which 4 are taken for green and 6 for blue.
    assert report.miou("unfiltered") == pytest.approx(100 * (22 / 32 + 1) / 2)
    assert report.miou("predicted_labels") == pytest.approx(100 * (26 / 32 + 1) / 2)
    assert report.miou("true_labels") == 100
    assert report.scores["unfiltered"].pixel_accuracy == pytest.approx(100 * 54 / 64)
    assert report.scores["unfiltered"].mean_accuracy == pytest.approx(100 * (22 / 32 + 1) / 2)
    assert report.scores["unfiltered"].iou == pytest.approx((100 * 22 / 32, 100, 0, 0))
    assert report.scores["true_labels"].iou == (100, 100, None, None)
    assert report.scores["cam_true_labels"].miou == 100
    assert (report.images, report.images_without_mask) == (1, 0)


def test_context_taken_for_foreground_by_hand():
    report = run([one_image()])
    # Of the context's 8 pixels 2 lie on the class; of the other 6, 2 are green and 2 are blue.
    assert report.scores["unfiltered"].context_false_foreground == pytest.approx(100 * 4 / 6)
    assert report.scores["predicted_labels"].context_false_foreground == pytest.approx(100 * 2 / 6)
    assert report.scores["cam_true_labels"].context_false_foreground == 0
    # Two green and two blue pixels among the six of the context that are background.
    assert report.scores["unfiltered"].context_as_class == pytest.approx([100 / 3, 0, 100 / 3, 100 / 3])
    assert report.scores["cam_true_labels"].context_as_class == (100, 0, 0, 0)
    plain = run([replace(one_image(), context=None)])
    assert plain.scores["unfiltered"].context_false_foreground is None
    assert plain.scores["unfiltered"].context_as_class == ()


def test_average_precision_of_the_image_classifier():
    # Logits: red 1, green about -0.4, blue 0.6; the label is red alone.
    report = run([one_image()])
    assert (report.map_image, report.map_class, report.aux_map_class) == (100, 100, 100)
    wrong = replace(one_image(), labels=torch.tensor([0.0, 1.0, 0.0]))
    report = run([wrong])
    assert report.map_image == pytest.approx(100 / 3)
    assert report.map_class == 100


def test_background_threshold_moves_the_cam_and_the_auxiliary_cam_apart():
    # Red of 0.6 on the right: above 0.5 in the CAM, 0.36 and below in the auxiliary (squared) one.
    image = one_image().image.clone()
    image[0, :, 4:7] = 153
    report = run([replace(one_image(), image=image)])
    assert report.scores["cam_true_labels"].iou[:2] == pytest.approx((25, 100 * 32 / 56))
    assert report.scores["aux_cam_true_labels"].iou[:2] == (100, 100)


def test_the_grid_equals_one_evaluation_per_threshold():
    samples = many_images(4)
    # Labels made those that the classifier predicts, so that both protocols keep the same classes.
    samples = [replace(s, labels=(s.image.amax((1, 2)) > 127).float()) for s in samples]
    grid = (0.55, 0.2, 0.8)
    config = changed(PLAIN, size=12, scales=(1.0, 0.5))
    together = run(samples, config, cam_background_grid=grid)
    assert list(together.cam_miou_by_background) == [0.2, 0.55, 0.8]
    for threshold in grid:
        alone = run(samples, changed(config, cam_background=threshold))
        expected = alone.scores["cam_true_labels"].miou
        assert together.cam_miou_by_background[threshold] == pytest.approx(expected, abs=1e-12)
        assert 0 < expected < 100


def test_the_grid_changes_nothing_else():
    samples = many_images(3)
    assert run(samples).scores == run(samples, cam_background_grid=(0.3,)).scores


def crf_sample() -> EvalSample:
    """Red left half; right of it a column that the network takes for red, in the ground's colour."""
    sample = one_image()
    image = sample.image.clone()
    image[:, :, 4:] = 0
    image[0, :, 4] = 40
    return replace(sample, image=image)


CRF = with_crf(PLAIN, CrfConfig(position_weight=0, bilateral_sigma_rgb=60.0, bilateral_weight=20.0))


def test_the_crf_is_judged_beside_the_plain_protocols():
    report, plain = run([crf_sample()], CRF), run([crf_sample()])
    measurements = ["unfiltered_crf", "true_labels_crf"]
    assert list(report.scores) == [*plain.scores, *measurements]
    assert all(report.scores[name] == score for name, score in plain.scores.items())
    # The column of 8 pixels is background to the CRF, which sees its colour.
    assert report.scores["unfiltered"].iou[:2] == pytest.approx((75, 80))
    assert all(report.scores[name].iou[:2] == (100, 100) for name in measurements)
    assert report.scores["unfiltered"].context_false_foreground == pytest.approx(100 * 2 / 6)
    assert report.scores["unfiltered_crf"].context_false_foreground == 0
    assert report.metrics()["online/miou_true_labels_crf"] == 100


def test_the_crf_sees_the_original_image_and_the_filtered_softmax(monkeypatch):
    seen = []
    refine = DenseCrf.refine

    def spy(self, probabilities):
        seen.append((self, probabilities))
        return refine(self, probabilities)

    monkeypatch.setattr(DenseCrf, "refine", spy)
    sample = many_images(1)[0]
    networks = {"online": ColourNetwork(), "assignment": ColourNetwork()}
    Evaluator(CLASSES, changed(CRF, size=12)).evaluate(networks, [sample])
    assert [tuple(p.shape) for _, p in seen] == [(1, 4, 6, 9)] * 4
    # One lattice for two networks and two protocols.
    assert len({id(crf) for crf, _ in seen}) == 1
    unfiltered, filtered = seen[0][1], seen[1][1]
    assert (unfiltered > 0).all()
    assert filtered[0].amax((1, 2)).gt(0).tolist() == [True, *(sample.labels > 0).tolist()]
    kept = unfiltered * filtered.gt(0)
    torch.testing.assert_close(filtered, kept / kept.sum(1, keepdim=True))
    assert torch.equal(
        refine(seen[0][0], unfiltered), DenseCrf.build(sample.image[None], CRF.crf).refine(unfiltered)
    )


def test_a_crf_by_name_comes_before_the_configured_one():
    config = EvaluationConfig(crf=CrfConfig(enabled=True, iterations=2, position_sigma=3))
    assert with_crf(config, config.crf) == config
    assert with_crf(config, "ten_iterations").crf == CRF_SETTINGS["ten_iterations"]
    assert not with_crf(config, None).crf.enabled
    chosen = with_crf(EvaluationConfig(), CrfConfig(iterations=2)).crf
    assert (chosen.enabled, chosen.iterations) == (True, 2)
    assert CRF_SETTINGS["released"] == CrfConfig(enabled=True)


def test_the_job_knows_the_crfs_by_name(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["evaluate.py", "nowhere", "--crf", "twenty"])
    with pytest.raises(SystemExit):
        parse()
    said = capsys.readouterr().err
    assert all(name in said for name in ("configured", *CRF_SETTINGS))


def test_a_run_is_evaluated_as_it_says():
    config = RunConfig(evaluation={"size": 64}, assignment={"aux_cam_last_scale_only": True})
    evaluator = Evaluator.of_run(config, CLASSES, masks_needed=False)
    assert (evaluator.config.size, evaluator.aux_cam_last_scale_only) == (64, True)
    assert not evaluator.masks_needed


def test_without_a_crf_nothing_of_it_is_computed(monkeypatch):
    monkeypatch.setattr(DenseCrf, "build", None)
    assert "unfiltered_crf" not in run([one_image()]).scores


def test_a_report_tells_which_images_it_is_of():
    samples = many_images(5)
    report = run(samples)
    assert report.image_set
    assert report.benchmark == ""
    assert report.tags() == {
        "image_set": report.image_set, "benchmark": "", "evaluated_images": "5", "classes": "3",
    }  # fmt: skip
    assert run(samples[::-1], changed(PLAIN, scales=(1.0, 0.5), flip=False)).image_set == report.image_set
    assert run(samples[:4]).image_set != report.image_set
    filled = [replace(s, mask=s.mask.masked_fill(s.mask == 255, 0)) for s in samples]
    assert run(filled).image_set != report.image_set
    # an image without a mask is not evaluated
    assert run([*samples, replace(samples[0], id="more", mask=None)]).image_set == report.image_set


def test_classes_without_a_pixel_are_named():
    assert run([one_image()]).absent_classes == ("green", "blue")
    assert run(many_images(5)).absent_classes == ()
    # Predicted is not enough, and what is ignored does not count.
    ignored = replace(one_image(), mask=one_image().mask * 255)
    assert run([ignored]).absent_classes == CLASSES


def test_any_batch_size_gives_the_same():
    samples = many_images(5)
    config = changed(PLAIN, scales=(1.0, 0.5, 1.5))
    reports = [run(samples, changed(config, batch_size=n), cam_background_grid=(0.4,)) for n in (1, 3)]
    assert reports[0].metrics() == reports[1].metrics()
    assert reports[0].scores == reports[1].scores


def test_several_networks_and_progress_and_precision():
    counted: list[int] = []
    entered: list[bool] = []

    class Context:
        def __enter__(self):
            entered.append(True)

        def __exit__(self, *_):
            return None

    networks = {"online": ColourNetwork(), "assignment": ColourNetwork()}
    evaluator = Evaluator(CLASSES, PLAIN, precision=Context, progress=counted.append)
    reports = evaluator.evaluate(networks, many_images(5))
    assert counted == [2, 4, 5]
    assert len(entered) == 6
    assert reports["online"].scores == reports["assignment"].scores
    assert "assignment/miou_unfiltered" in reports["assignment"].metrics()


def test_the_training_mode_of_every_module_is_put_back():
    network = nn.Sequential(ColourNetwork(), nn.Identity())
    network[1].eval()
    forward = network[0].forward
    modes = []
    network[0].forward = lambda images: modes.append(network[0].training) or forward(images)  # type: ignore[func-returns-value]
    network.forward = network[0].forward  # type: ignore[method-assign]
    Evaluator(CLASSES, PLAIN).evaluate({"online": network}, [one_image()])
    assert modes == [False]
    assert (network.training, network[0].dropout.training, network[1].training) == (
        True,
        True,
        False,
    )
    with pytest.raises(ValueError, match="no image with a mask"):
        Evaluator(CLASSES, PLAIN).evaluate({"online": network}, [])
    assert network.training


@pytest.mark.parametrize("sizes", [(2, 5), (0, 7), (1, 1, 5), (7, 0)])
def test_parts_give_the_reports_of_growing_sets_of_images(sizes):
    samples = many_images(7)
    ends = [sum(sizes[: n + 1]) for n in range(len(sizes))]
    parts = [samples[end - size : end] for end, size in zip(ends, sizes, strict=True)]
    found = Evaluator(CLASSES, PLAIN, masks_needed=False).evaluate_parts({"online": ColourNetwork()}, parts)
    assert [reports["online"].images for reports in found] == ends
    for end, reports in zip(ends, found, strict=True):
        if end:
            assert reports["online"] == run(samples[:end])
        else:
            assert reports["online"].miou() is None


def test_images_without_a_mask_are_left_out_and_counted():
    bare = colour_sample("bare", one_image().image, None, [2])
    report = run([bare, one_image(), replace(bare, id="other")])
    assert (report.images, report.images_without_mask) == (1, 2)
    assert report.scores == run([one_image()]).scores


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mask": torch.zeros(4, 4, dtype=torch.uint8)}, "'one' is .* mask"),
        ({"context": torch.zeros(4, 4, dtype=torch.uint8)}, "'one' is .* context"),
        ({"labels": torch.zeros(5)}, "3 class names"),
    ],
)
def test_samples_that_do_not_fit_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        run([replace(one_image(), **change)])


def test_an_image_counted_twice_is_refused():
    with pytest.raises(ValueError, match="2 images of which only 1"):
        run([one_image(), one_image()])


def test_a_network_of_other_classes_is_refused():
    sample = replace(one_image(), labels=torch.zeros(2))
    with pytest.raises(ValueError, match="3 classes and 4 segmentation planes"):
        Evaluator(CLASSES[:2], PLAIN).evaluate({"online": ColourNetwork()}, [sample])


# Samples of each rank: uneven, with an image without a mask, and a rank without any image.
SHARES = {"uneven": ((4, 0, 1, 2), (3,)), "one rank idle": ((0, 1, 2, 3, 4), ())}
DISTRIBUTED = with_crf(changed(PLAIN, scales=(1.0, 0.5)), "released")
GRID = (0.2, 0.4)


def shared_samples() -> list[EvalSample]:
    samples = many_images(5)
    samples[2] = replace(samples[2], mask=None)
    samples[3] = replace(samples[3], context=torch.ones_like(samples[3].mask))
    return samples


def evaluate_share(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    samples = shared_samples()
    for name, shares in SHARES.items():
        report = run([samples[index] for index in shares[rank]], DISTRIBUTED, cam_background_grid=GRID)
        path = Path(folder) / f"{name}-{rank}.json"
        report.with_intervals().write(path, path.with_suffix(".npz"))


def test_two_ranks_equal_a_single_process_exactly(tmp_path):
    run_ranks(evaluate_share, 2, str(tmp_path))
    alone = run(shared_samples(), DISTRIBUTED, cam_background_grid=GRID).with_intervals()
    assert (alone.images, alone.images_without_mask) == (4, 1)
    assert alone.scores["unfiltered"].context_false_foreground is not None
    for name in SHARES:
        for rank in range(2):
            shared = EvalReport.from_json((tmp_path / f"{name}-{rank}.json").read_text())
            assert shared == alone
            counts = ImageCounts.load(tmp_path / f"{name}-{rank}.npz")
            assert counts.ids == alone.counts.ids == ("image-0", "image-1", "image-3", "image-4")
            for measurement in alone.scores:
                assert np.array_equal(counts.table(measurement), alone.counts.table(measurement))
    assert alone.rare_classes == ("background", *CLASSES)  # four images give no interval
    assert all(score.interval is None for score in alone.scores.values())
