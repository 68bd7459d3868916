"""Data modules: embedded, local or downloaded data, one file per family."""

from lit_papers.datamodules.adult import Adult
from lit_papers.datamodules.breast_cancer import BreastCancer
from lit_papers.datamodules.digits import Digits
from lit_papers.datamodules.gaussian_regression import GaussianRegression
from lit_papers.datamodules.graph_pairs import GraphPair, GraphPairs
from lit_papers.datamodules.image_folder import ImageFolder
from lit_papers.datamodules.images import CorruptDataError, ImageDataModule
from lit_papers.datamodules.local_sgd import Components, Sharded
from lit_papers.datamodules.mnist import MNIST, FashionMNIST
from lit_papers.datamodules.speech_commands import SpeechCommands
from lit_papers.datamodules.spoken_digits import SpokenDigits
from lit_papers.datamodules.task_domains import PermutedPixels, RotatedImages
from lit_papers.datamodules.task_sequence import TaskSequence
from lit_papers.datamodules.tiny_imagenet import TinyImageNet
from lit_papers.datamodules.torchvision_sets import CIFAR10, CIFAR100, STL10, SVHN
from lit_papers.locations import MissingDataError

__all__ = [
    "CIFAR10",
    "CIFAR100",
    "MNIST",
    "STL10",
    "SVHN",
    "Adult",
    "BreastCancer",
    "Components",
    "CorruptDataError",
    "Digits",
    "FashionMNIST",
    "GaussianRegression",
    "GraphPair",
    "GraphPairs",
    "ImageDataModule",
    "ImageFolder",
    "MissingDataError",
    "PermutedPixels",
    "RotatedImages",
    "Sharded",
    "SpeechCommands",
    "SpokenDigits",
    "TaskSequence",
    "TinyImageNet",
]
