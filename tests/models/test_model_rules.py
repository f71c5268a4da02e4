"""Rules that every model class keeps: those of Transformers' own models, recomputation, compiling, exporting, `Trainer`."""

import pytest
import torch
from transformers import AutoModelForSemanticSegmentation, Trainer, TrainingArguments

from revhrnet_hf import (
    HRNetV2Backbone,
    HRNetV2Config,
    HRNetV2ForSemanticSegmentation,
    RevHRNetForSemanticSegmentation,
    RevHRNetModel,
)

TINY_HRNET = {
    "stem_channels": 8,
    "stage1_channels": 8,
    "stage1_blocks": 1,
    "stream_channels": [8, 12, 16, 20],
    "num_modules": [1, 2, 1],
    "num_blocks": 1,
    "num_labels": 5,
    "initializer": "he",
}
SEGMENTATION = ["hrnetv2", "revhrnet", "revhrnet on trained hrnetv2"]
ALL = [*SEGMENTATION, "hrnetv2 backbone", "revhrnet base"]


@pytest.fixture
def make(tiny_config):
    """Makes the model of a name, seeded, in training mode."""

    def build(name):
        torch.manual_seed(0)
        hrnet = HRNetV2Config(**TINY_HRNET)
        rev = tiny_config(initializer="he")
        full = tiny_config(initializer="he", backbone_config=hrnet, freeze_backbone=False)
        builders = {
            "hrnetv2": lambda: HRNetV2ForSemanticSegmentation(hrnet),
            "hrnetv2 backbone": lambda: HRNetV2Backbone(hrnet),
            "revhrnet": lambda: RevHRNetForSemanticSegmentation(rev),
            "revhrnet base": lambda: RevHRNetModel(rev),
            "revhrnet on trained hrnetv2": lambda: RevHRNetForSemanticSegmentation(full),
        }
        return builders[name]().train()

    return build


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    return {
        "pixel_values": torch.randn(2, 3, 64, 96, generator=generator),
        "labels": torch.randint(0, 5, (2, 64, 96), generator=generator),
    }


def tensors_of(outputs):
    """All tensors of an output, tuples of tensors taken apart."""
    found = []
    for value in outputs.values() if isinstance(outputs, dict) else outputs:
        found.extend(value if isinstance(value, tuple) else [value])
    return found


@pytest.mark.parametrize("name", ALL)
class TestAllModels:
    def test_tiny(self, make, name):
        assert make(name).num_parameters() < 1e6

    def test_save_and_load(self, make, batch, name, tmp_path):
        model = make(name).eval()
        model.save_pretrained(tmp_path)
        loaded = type(model).from_pretrained(tmp_path)
        assert not loaded.training
        with torch.no_grad():
            pairs = zip(tensors_of(loaded(batch["pixel_values"])), tensors_of(model(batch["pixel_values"])), strict=True)
            assert all(torch.equal(a, b) for a, b in pairs)

    def test_tuple_and_dict(self, make, batch, name):
        model = make(name).eval()
        with torch.no_grad():
            as_dict = model(batch["pixel_values"], output_hidden_states=True)
            as_tuple = model(batch["pixel_values"], output_hidden_states=True, return_dict=False)
        assert isinstance(as_tuple, tuple)
        assert as_dict.hidden_states is not None
        assert all(torch.equal(a, b) for a, b in zip(tensors_of(as_dict), tensors_of(as_tuple), strict=True))

    def test_batching(self, make, batch, name):
        model = make(name).eval().double()  # in float32, the order of sums may change with the batch
        images = batch["pixel_values"].double()
        with torch.no_grad():
            together = tensors_of(model(images))
            alone = [tensors_of(model(x[None])) for x in images]
        for index, x in enumerate(together):
            expected = torch.cat([outputs[index] for outputs in alone])
            torch.testing.assert_close(x, expected, rtol=1e-10, atol=1e-10)

    def test_hidden_states_from_the_config(self, make, batch, name):
        model = make(name).eval()
        model.config.output_hidden_states = True
        assert model(batch["pixel_values"]).hidden_states is not None
        assert model(batch["pixel_values"], output_hidden_states=False).hidden_states is None

    def test_meta_device(self, make, batch, name):
        """Built without memory, then filled, as large models are loaded; BatchNorm's statistics and all."""
        reference = make(name).eval()
        with torch.device("meta"):
            model = type(reference)(reference.config)
        model.load_state_dict(reference.state_dict(), assign=True)
        with torch.no_grad():
            outputs = model.eval()(batch["pixel_values"])
            pairs = zip(tensors_of(outputs), tensors_of(reference(batch["pixel_values"])), strict=True)
            assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("name", ["hrnetv2", "revhrnet"])
def test_compiled_without_graph_breaks(make, batch, name):
    """With the backbone and the base model that they are made of; test_trained_compiled has the one on the other."""
    model = make(name).eval()
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        pairs = zip(tensors_of(compiled(batch["pixel_values"])), tensors_of(model(batch["pixel_values"])), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("name", SEGMENTATION)
class TestSegmentationModels:
    def test_retained_gradients(self, make, batch, name):
        outputs = make(name)(**batch, output_hidden_states=True)
        for x in outputs.hidden_states:
            x.retain_grad()
        outputs.logits.flatten()[0].backward()
        # Every hidden state of HRNet reaches the logits; of the reverse net's, those that ended reach them through the exchange.
        assert all(x.grad is not None for x in outputs.hidden_states)

    def test_other_head(self, make, name, tmp_path):
        """Another number of classes: an error, unless asked for; then all but the classifier is as saved."""
        model = make(name)
        model.save_pretrained(tmp_path)
        with pytest.raises(RuntimeError, match="mismatch"):
            AutoModelForSemanticSegmentation.from_pretrained(tmp_path, num_labels=9)
        loaded = AutoModelForSemanticSegmentation.from_pretrained(tmp_path, num_labels=9, ignore_mismatched_sizes=True)
        assert loaded.head[3].weight.shape[0] == 9
        saved = model.state_dict()
        for key, tensor in loaded.state_dict().items():
            assert key.startswith("head.3.") or torch.equal(tensor, saved[key]), key

    @pytest.mark.parametrize("use_reentrant", [False, True])
    def test_recomputation(self, make, batch, name, use_reentrant):
        """Same loss, gradients and BatchNorm statistics; less kept in between."""
        kept = {}
        for recompute in (False, True):
            model = make(name)
            model.gradient_checkpointing_enable({"use_reentrant": use_reentrant} if recompute else {"recompute": "none"})
            sizes = []
            with torch.autograd.graph.saved_tensors_hooks(lambda x, sizes=sizes: sizes.append(x.nbytes) or x, lambda x: x):
                loss = model(**batch).loss
            before_backward = sum(sizes)
            loss.backward()
            kept[recompute] = (before_backward, loss, {k: p.grad for k, p in model.named_parameters()}, model.state_dict())
        assert kept[True][0] < kept[False][0] / 1.5
        assert torch.equal(kept[True][1], kept[False][1])
        for key, gradient in kept[False][2].items():
            assert (gradient is None) == (kept[True][2][key] is None), key
            if gradient is not None:
                torch.testing.assert_close(kept[True][2][key], gradient, rtol=1e-5, atol=1e-5)
        for key, tensor in kept[False][3].items():  # statistics and counters of batches
            assert torch.equal(kept[True][3][key], tensor), key

    def test_recomputation_can_be_ended(self, make, batch, name):
        model = make(name)
        model.gradient_checkpointing_enable()
        assert model.is_gradient_checkpointing
        model.gradient_checkpointing_disable()
        assert not model.is_gradient_checkpointing
        model(**batch).loss.backward()

    @pytest.mark.slow
    def test_recomputation_compiled(self, make, batch, name):
        """One graph, and the plain model's loss, gradients and statistics; float64, as processors round float32 differently."""
        plain, model = make(name).double(), make(name).double()
        batch = batch | {"pixel_values": batch["pixel_values"].double()}
        plain(**batch).loss.backward()
        model.gradient_checkpointing_enable()
        torch._dynamo.reset()
        torch.compile(model, fullgraph=True, backend="aot_eager")(**batch).loss.backward()
        for (key, parameter), expected in zip(model.named_parameters(), plain.parameters(), strict=True):
            if expected.grad is not None:
                torch.testing.assert_close(parameter.grad, expected.grad, rtol=1e-5, atol=1e-5, msg=key)
        state = model.state_dict()
        for key, tensor in plain.state_dict().items():
            torch.testing.assert_close(state[key], tensor, rtol=1e-5, atol=1e-5, msg=key)

    @pytest.mark.slow
    def test_trained_compiled(self, make, batch, name):
        """Forward with loss and backward in one graph each; the loss of the plain model."""
        torch._dynamo.reset()
        loss = torch.compile(make(name), fullgraph=True, backend="aot_eager")(**batch).loss
        loss.backward()
        torch.testing.assert_close(loss, make(name)(**batch).loss, rtol=1e-5, atol=1e-5)

    @pytest.mark.slow
    def test_exported(self, make, batch, name):
        model = make(name).eval()
        exported = torch.export.export(model, (batch["pixel_values"],), strict=True).module()
        with torch.no_grad():
            expected = model(batch["pixel_values"]).logits
            torch.testing.assert_close(exported(batch["pixel_values"]).logits, expected, rtol=1e-5, atol=1e-5)

    def test_trainer(self, make, batch, name, tmp_path):
        """Steps that accumulate and recompute make the loss fall; a frozen backbone stays bit for bit."""
        images = [{key: value[i % 2] for key, value in batch.items()} for i in range(8)]
        model = make(name)
        backbone = {k: v.clone() for k, v in model.base_model.state_dict().items() if k.startswith("backbone.")}
        with torch.no_grad():
            before = model(**batch).loss.item()
        arguments = TrainingArguments(
            output_dir=str(tmp_path),
            max_steps=6,
            per_device_train_batch_size=2,
            gradient_accumulation_steps=2,
            learning_rate=1e-2,
            report_to=[],
            save_strategy="no",
            use_cpu=True,
            disable_tqdm=True,
            gradient_checkpointing=True,
            remove_unused_columns=False,
        )
        trainer = Trainer(model=model, args=arguments, train_dataset=images, eval_dataset=images)
        assert trainer.model_accepts_loss_kwargs is False
        trainer.train()
        with torch.no_grad():
            assert model.train()(**batch).loss.item() < before
        if name == "revhrnet":
            now = model.base_model.state_dict()
            assert all(torch.equal(now[key], tensor) for key, tensor in backbone.items())
        assert torch.isfinite(torch.tensor(trainer.evaluate()["eval_loss"]))
