"""A recipe small enough for tests and a run's vocabulary: the demo's own."""

from pathlib import Path

import pytest

from moonshard.training.data.corpus import Encoder
from moonshard.training.recipe import Recipe
from moonshard.training.tokens import load_encoder
from moonshard_cluster.demo.spec import DemoSpec
from moonshard_cluster.demo.vocabulary import write_vocabulary


@pytest.fixture(scope="session")
def recipe() -> Recipe:
    spec = DemoSpec.tiny(n_routed_experts=12, num_experts_per_tok=3, vocab_size=2048)
    return Recipe(spec=spec, num_steps=6, rows=2, row_length=400, warmup_steps=2, quantised_fraction=0.5)


@pytest.fixture(scope="session")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vocabulary")
    write_vocabulary(folder, 2048)
    return folder


@pytest.fixture(scope="session")
def encoder(vocabulary: Path) -> Encoder:
    return load_encoder(vocabulary)
