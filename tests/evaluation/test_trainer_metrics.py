"""TrainerMetrics with transformers.Trainer: the confusion matrix of `evaluate_dataset`, and Trainer's own saving and loading."""

import json

import numpy as np
import pytest
import torch
from transformers import (
    AutoImageProcessor,
    AutoModelForSemanticSegmentation,
    EvalPrediction,
    Trainer,
    TrainingArguments,
)

from revhrnet_hf import RevHRNetImageProcessor
from revhrnet_hf.errors import DataError
from revhrnet_hf.evaluation import TrainerMetrics, evaluate_dataset

from .tiny import NUM_LABELS, labelled_dataset


class Rows(torch.utils.data.Dataset):
    """Images of different sizes and their label maps, with a key that no network takes."""

    def __init__(self, image_processor):
        self.rows, self.image_processor = labelled_dataset(), image_processor

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        row = self.rows[index]
        image = self.image_processor(row["image"], return_tensors="pt")["pixel_values"][0]
        return {"pixel_values": image, "labels": np.array(row["label_map"]), "image_id": row["image_id"]}


@pytest.fixture
def make_trainer(tiny_model, tmp_path):
    def make(model=tiny_model, **settings):
        image_processor = RevHRNetImageProcessor(do_resize=True, size={"longest_edge": 96})
        metrics, seen = TrainerMetrics(model.config.id2label), []

        def compute_metrics(prediction, compute_result):
            seen.append(prediction.predictions)
            return metrics(prediction, compute_result)

        arguments = TrainingArguments(
            str(tmp_path / "run"),
            per_device_train_batch_size=1,
            per_device_eval_batch_size=1,
            batch_eval_metrics=True,
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
            **settings,
        )
        rows = Rows(image_processor)
        trainer = Trainer(
            model,
            arguments,
            train_dataset=rows,
            eval_dataset=rows,
            processing_class=image_processor,
            compute_metrics=compute_metrics,
            preprocess_logits_for_metrics=metrics.label_maps,
        )
        return trainer, seen

    return make


def test_scores_are_those_of_evaluate_dataset(make_trainer):
    trainer, seen = make_trainer()
    for _ in range(2):  # the counts of one evaluation are not those of the next
        found = trainer.evaluate()
        confusion = evaluate_dataset(trainer.model, trainer.processing_class, labelled_dataset(), NUM_LABELS)
        expected = confusion.scores()
        assert expected["mean_iou"] > 0.02
        assert found["eval_mean_iou"] == expected["mean_iou"]
        assert found["eval_overall_accuracy"] == expected["overall_accuracy"]
        for class_id, iou in enumerate(expected["per_category_iou"]):
            assert found[f"eval_iou_{trainer.model.config.id2label[class_id]}"] == iou
    # Trainer holds label maps of one image at a time, and no logits.
    assert {maps.dtype for maps in seen} == {torch.uint8} and all(len(maps) == 1 for maps in seen)
    assert [tuple(maps.shape[1:]) for maps in seen[:5]] == [(33, 47), (64, 40), (40, 64), (33, 47), (35, 90)]


def test_all_at_once_is_the_same():
    """Without `batch_eval_metrics` Trainer calls with all label maps, as NumPy arrays."""
    metrics = TrainerMetrics({0: "a", 1: "b"})
    labels = np.array([[[0, 255, 255], [255, 1, 255]], [[1, 1, 255], [-100, -100, -100]]])  # the second one is padded
    predictions = np.array([[[0, 1, 1], [0, 0, 0]], [[1, 1, 0], [0, 0, 0]]])
    found = metrics(EvalPrediction(predictions, labels))
    assert found["iou_a"] == 1 / 2 and found["iou_b"] == 2 / 3 and found["overall_accuracy"] == 3 / 4
    with pytest.raises(DataError, match="the evaluation dataset holds no labelled pixel"):
        metrics(EvalPrediction(predictions, np.full_like(labels, 255)))


@pytest.mark.parametrize("place", [(0, 0, 1), (0, 0), (1, 1, 2)])
def test_what_trainer_has_not_padded_is_no_padding(place):
    """A pixel with -100, or a row above others, is neither a class nor ignored."""
    labels = np.ones((2, 2, 3), dtype=int)
    labels[place] = -100
    with pytest.raises(DataError, match="-100"):
        TrainerMetrics({0: "a", 1: "b"})(EvalPrediction(np.ones_like(labels), labels))


def test_ignored_rows_at_the_bottom_are_no_padding_on_one_process():
    logits, labels = torch.randn(1, 3, 12, 16), torch.randint(0, 3, (1, 48, 64))
    labels[:, 42:] = -100
    metrics = TrainerMetrics({"0": "a", "1": "b", "2": "c"})  # as in a config.json
    maps = metrics.label_maps(logits, labels)
    expected = torch.nn.functional.interpolate(logits, (48, 64), mode="bilinear").argmax(1)
    assert torch.equal(maps.long(), expected)
    correct = (expected == labels)[:, :42].float().mean()
    assert metrics(EvalPrediction(maps, labels))["overall_accuracy"] == pytest.approx(correct.item())


def test_rows_that_trainer_padded_change_no_pixel(monkeypatch):
    """Other processes may have taller images: then the label maps are padded with -100 before they are predicted."""
    logits = torch.randn(2, 3, 5, 7)
    labels = torch.randint(0, 3, (2, 17, 23))
    padded = torch.nn.functional.pad(labels, (0, 0, 0, 6), value=-100)
    metrics = TrainerMetrics(dict(enumerate("abc")))
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    alone, with_padding = metrics.label_maps(logits, labels), metrics.label_maps((logits, None), padded)
    expected = torch.nn.functional.interpolate(logits, (17, 23), mode="bilinear").argmax(1)
    assert torch.equal(alone.long(), expected)
    assert torch.equal(with_padding[:, :17], alone) and with_padding.shape == padded.shape


def test_training_saves_and_loads_as_usual(make_trainer, tmp_path):
    """The default Trainer: frozen backbone, best checkpoint, safetensors, resuming; the folder loads with the Auto classes."""
    best = {
        "eval_strategy": "epoch",
        "save_strategy": "epoch",
        "load_best_model_at_end": True,
        "metric_for_best_model": "mean_iou",
    }
    trainer, _ = make_trainer(num_train_epochs=2, learning_rate=0.01, **best)
    trainer.model.base_model.freeze()
    backbone = {key: value.clone() for key, value in trainer.model.base_model.backbone.state_dict().items()}
    trainer.train()
    state = trainer.model.base_model.backbone.state_dict()
    assert all(torch.equal(state[key], value) for key, value in backbone.items())
    scores = [entry["eval_mean_iou"] for entry in trainer.state.log_history if "eval_mean_iou" in entry]
    assert len(scores) == 2 and trainer.state.best_metric == max(scores)

    folder = tmp_path / "run" / "checkpoint-10"
    assert (folder / "model.safetensors").is_file() and (folder / "preprocessor_config.json").is_file()
    trainer.save_model(str(tmp_path / "best"))
    model = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "best")
    image_processor = AutoImageProcessor.from_pretrained(tmp_path / "best")
    confusion = evaluate_dataset(model, image_processor, labelled_dataset(), NUM_LABELS)
    assert confusion.scores()["mean_iou"] == max(scores)

    longer, _ = make_trainer(model, num_train_epochs=3, learning_rate=0.01, **best)
    longer.train(resume_from_checkpoint=str(folder))
    assert (
        longer.state.global_step == 15
        and json.loads((tmp_path / "run/checkpoint-15/trainer_state.json").read_text())["epoch"] == 3
    )
