"""How much of the classes a network's feature maps hold: the scores of a linear classifier on each of them.

    python scripts/probe.py runs/camvid/best runs/hrnet/best --dataset camvid --data_dir CamVid

For the map of each stride that `revhrnet figure compare` draws, a logistic regression from its channels to the classes is fitted
on cells of --train_split. Its logits are upsampled to the size of the label maps and scored on --split, as the network's are. A
cell has the class of the pixel at its centre. All networks get the same images and as many cells. Needs the extra `benchmark`.
"""

import argparse
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from revhrnet_hf.cli import ArgumentParser, run
from revhrnet_hf.commands import check_installed
from revhrnet_hf.data import label_space_of, load_segmentation_dataset
from revhrnet_hf.errors import CheckpointError, RecipeError
from revhrnet_hf.evaluation import ConfusionMatrix, InferenceSettings, load_for_inference
from revhrnet_hf.evaluation.network_input import NetworkInput, Samples, read_ahead
from revhrnet_hf.models.image_processing_pil_revhrnet import canvas_size
from revhrnet_hf.models.upsampling import upsampled_argmax
from revhrnet_hf.text import table
from revhrnet_hf.viz.feature_maps import feature_maps

MAX_ITERATIONS = 1000


def build_parser() -> ArgumentParser:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", metavar="CHECKPOINT", nargs="+", help="folder, also of a run, or Hub name")
    parser.add_argument("--dataset", required=True, help="dataset by name: camvid, folder …")
    parser.add_argument("--data_dir", required=True, type=Path, help="the dataset's folder")
    parser.add_argument("--label_space", help="classes by name, or a label table (default: the dataset's usual ones)")
    parser.add_argument("--train_split", default="train", help="images to fit the classifiers on (default: %(default)s)")
    parser.add_argument("--split", default="val", help="images to score (default: %(default)s)")
    parser.add_argument("--cells", type=int, default=200, metavar="N", help="cells of each image and map (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="chooses the cells (default: %(default)s)")
    return parser


def main(arguments: list[str] | None = None) -> None:
    args = build_parser().parse_args(arguments)
    check_installed("Probes need", "benchmark", "sklearn", "segmentation_models_pytorch")
    from studies.peers import register_peers

    register_peers()  # checkpoints of a study may have other decoders
    if args.cells < 1:
        raise RecipeError(f"--cells {args.cells}: give 1 or more")
    fitted_on, scored_on = (
        load_segmentation_dataset(args.dataset, args.data_dir, split, label_space=args.label_space)
        for split in (args.train_split, args.split)
    )
    scores = {}
    for checkpoint in args.checkpoints:
        network = load_for_inference(checkpoint, "cuda" if torch.cuda.is_available() else "cpu")
        scores[checkpoint] = score(network, scored_on, fit(network, fitted_on, args.cells, args.seed))
    strides = sorted({stride for of_network in scores.values() for stride in of_network})
    rows = [[name, *(f"{found[stride]:.3f}" if stride in found else "–" for stride in strides)] for name, found in scores.items()]
    print(table([["mIoU of the probe", *(f">stride {stride}" for stride in strides)], *rows]))


def fit(network: tuple, dataset, cells: int, seed: int) -> dict[int, Any]:
    """A classifier for the map of each stride, fitted on `cells` labelled cells of each image.

    Args:
        network: model and image processor.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    generator, ignore_index = np.random.default_rng(seed), label_space_of(dataset).ignore_index
    features, classes = defaultdict(list), defaultdict(list)
    for maps, inputs, label_map in maps_of_images(network, dataset):
        for stride, x in maps.items():
            labels = labels_of_cells(label_map, x.shape[1:], stride, inputs.size)
            labelled = np.flatnonzero(labels != ignore_index)
            chosen = generator.choice(labelled, min(cells, len(labelled)), replace=False)
            features[stride].append(x.reshape(len(x), -1).T[chosen])
            classes[stride].append(labels.ravel()[chosen])
    probes = {}
    for stride, of_images in features.items():
        probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=MAX_ITERATIONS))
        probes[stride] = probe.fit(np.concatenate(of_images), np.concatenate(classes[stride]))
    return probes


def score(network: tuple, dataset, probes: dict[int, Any]) -> dict[int, float]:
    """Stride → mIoU of the classifiers' label maps, at the size of the true ones."""
    space = label_space_of(dataset)
    matrices = {stride: ConfusionMatrix(space.num_classes, space.ignore_index) for stride in probes}
    for maps, inputs, label_map in maps_of_images(network, dataset):
        for stride, probe in probes.items():
            matrices[stride].update(predicted_map(probe, maps[stride], stride, inputs.size, label_map.shape), label_map)
    return {stride: matrix.scores()["mean_iou"] for stride, matrix in matrices.items()}


def maps_of_images(network: tuple, dataset) -> Iterator[tuple[dict[int, np.ndarray], NetworkInput, np.ndarray]]:
    """Of each image the feature maps (channels, rows, columns) by stride, the network's input, and the true label map."""
    model, image_processor = network
    samples = Samples(dataset, list(range(len(dataset))), image_processor, InferenceSettings())
    for sample in read_ahead(samples, 0, model.device):
        (inputs,) = sample.inputs
        if inputs.place != (0, 0):
            raise CheckpointError(f"{type(image_processor).__name__} pads images at the top or left: set do_pad to false")
        yield feature_maps(model, inputs), inputs, sample.references.numpy()


def labels_of_cells(label_map: np.ndarray, cells: tuple[int, int], stride: int, size: tuple[int, int]) -> np.ndarray:
    """The class at the centre of each cell of a map; beyond the image, that of its last row or column.

    Args:
        label_map: true class ids.
        cells: (rows, columns) of the map.
        size: (height, width) of the image in the network's input.
    """
    rows, columns = (
        np.minimum((np.arange(count) + 0.5) * stride * whole / edge, whole - 1).astype(int)
        for count, whole, edge in zip(cells, label_map.shape, size, strict=True)
    )
    return label_map[np.ix_(rows, columns)]


def predicted_map(probe, x: np.ndarray, stride: int, size: tuple[int, int], target: tuple[int, int]) -> np.ndarray:
    """Class ids of size `target` from a feature map (channels, rows, columns) of an image with `size` in the network's input."""
    logits = probe.decision_function(x.reshape(len(x), -1).T)
    if logits.ndim == 1:  # of two classes scikit-learn gives the second one's alone
        logits = np.stack([np.zeros_like(logits), logits], axis=1)
    logits = torch.from_numpy(logits.T.reshape(-1, *x.shape[1:])).float()
    covered = tuple(cells * stride for cells in x.shape[1:])
    return probe.classes_[upsampled_argmax(logits, target, canvas_size(size, covered, target)).numpy()]


if __name__ == "__main__":
    run(main)
