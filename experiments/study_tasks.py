"""What `study.py` runs: schemes, variants and controls, and how much of them on which task."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

STEPS = 60
RATES = (2e-4, 4e-4, 8e-4)  # 1e-4, tried on seed 100 first, was never the best
SCHEMES = {
    "uniform": ["credit=uniform"],
    "atrl": ["credit=atrl"],
    "token_level": ["credit=token_level"],
    "anchor_only": ["credit=anchor_only"],
    "random_only": ["credit=random", "credit.rest_weight=0"],  # as many tokens as anchor_only, drawn at random
    "low_connectivity": ["credit=low_connectivity"],
    "entropy": ["credit=entropy"],
    "hidden_cosine": ["credit=hidden_cosine"],
    "oracle": ["credit=oracle"],
    "oracle_only": ["credit=oracle", "credit.rest_weight=0"],
    "random_soft": ["credit=random"],  # as many tokens as token_level's anchors and their weights, drawn at random
    "dependency_15": ["credit=visual_dependency", "credit.anchor_ratio=0.15"],
    "dependency_only": ["credit=visual_dependency", "credit.anchor_ratio=0.15", "credit.rest_weight=0"],
    "visual_dependency": ["credit=visual_dependency"],
    "found_reading": ["credit=visual_dependency", "credit._target_=partly_found.FoundReading"],
    "reading_and_found": ["credit=visual_dependency", "credit._target_=partly_found.ReadingAndFound"],
    "found_with_digits": ["credit=visual_dependency", "credit._target_=extra_anchors.FoundWithDigits"],
    "found_with_words": ["credit=visual_dependency", "credit._target_=extra_anchors.FoundWithWords"],
    "shuffled_patches": ["credit=visual_dependency", "credit.mask=shuffled", "credit.mask_ratio=1"],
    "two_heads": ["credit=token_level", "credit.heads=auto", "credit.auto_heads=2"],
}
BY_DEPENDENCY = ("dependency_15", "dependency_only", "visual_dependency")
MIXED = ("found_reading", "reading_and_found")
WITH_EXTRAS = ("found_with_digits", "found_with_words")
FOUND_LATER = ("random_soft", *BY_DEPENDENCY, *MIXED, *WITH_EXTRAS, "shuffled_patches", "two_heads")
"""The schemes that not every task has: they were planned once others had run."""
MIGHT_WIN = ("uniform", "atrl", "token_level", "oracle")
"""The schemes that get the most seeds, and what they are compared with."""
PARTS = ("anchor_only", "random_only", "low_connectivity", "oracle_only")
"""The schemes that train a part of the tokens, chosen by what they read or by nothing."""
VARIANTS = {
    "right_only": ["credit=atrl", "algorithm.credit_on=positive"],
    "wrong_only": ["credit=atrl", "algorithm.credit_on=negative"],
    "nine_to_one": ["credit=atrl", "credit.anchor_weight=9"],
    "load_map": ["credit=atrl", "credit.weights=load_map"],
    "ranked_by_mean": ["credit=atrl", "credit.rank_clusters=mean"],
    "small_clusters": ["credit=atrl", "credit.num_clusters=32"],
    "attention_edges": ["credit=atrl", "credit.edges=attention"],
    "auto_heads": ["credit=atrl", "credit.heads=auto", "credit.head_criterion=relative_contrast"],
    "vppo": ["credit=vppo"],
    "papo": ["credit=papo"],
    "query_key_cosine": ["credit=query_key_cosine"],
    "entropy_atrl": ["credit=entropy_atrl"],
}
CONTROLS = {
    "shuffled": ["credit=uniform", "algorithm.advantage._target_=atrl.advantage.ShuffledAdvantage"],
    "supervised": ["credit=none", "stage=sft", "data.slip_rate=0.2", "sft.steps=300", "sft.learning_rate=5e-4"],
}
COMMON = (
    *("rollout=transformers", "logger=csv", f"trainer.max_steps={STEPS}", "trainer.threads=1"),
    "trainer.evaluate_samples=512",
)


@dataclass(frozen=True)
class Task:
    """What is run on a task."""

    overrides: tuple[str, ...]
    checkpoint: tuple[str, ...] = ()
    """Overrides of the run that trains what its runs start from; of none, that is the shipped one."""
    checkpoint_of: str | None = None
    """The task that has the same; None is itself."""
    schemes: tuple[str, ...] = tuple(scheme for scheme in SCHEMES if scheme not in FOUND_LATER)
    rates: tuple[float, ...] = RATES
    """Of which each scheme gets the one that is best on the selection split; a single one is everybody's."""
    own_rates: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """Of which these schemes get theirs instead."""
    rate_seeds: tuple[int, ...] = (100, 101)
    uniform_rates: tuple[float, ...] = ()
    """At which uniform credit runs as well."""
    first_seed: int = 0
    seeds: int = 5
    more_seeds: Mapping[str, int] = field(default_factory=lambda: dict.fromkeys(MIGHT_WIN, 10))
    """Schemes with more seeds, and how many."""
    controls: tuple[str, ...] = tuple(CONTROLS)
    variants: tuple[str, ...] = tuple(VARIANTS)

    def rates_of(self, scheme: str) -> tuple[float, ...]:
        """That it may get."""
        return self.own_rates.get(scheme, self.rates)

    @property
    def every_seed(self) -> range:
        """Of any scheme."""
        return range(self.first_seed, self.first_seed + max((self.seeds, *self.more_seeds.values())))

    def seeds_of(self, scheme: str) -> range:
        """Of its runs."""
        return range(self.first_seed, self.first_seed + self.more_seeds.get(scheme, self.seeds))


TASKS = {
    "geometry": Task(overrides=("data.selection_size=512", "trainer.grounding_samples=512")),
    "wordy": Task(
        overrides=("experiment=wordy", "data.selection_size=512", "trainer.grounding_samples=512"),
        checkpoint=("experiment=wordy_checkpoint",),
        schemes=("uniform", "atrl", "token_level", "anchor_only", "random_only", "low_connectivity", "oracle"),
        rates=(4e-4,),  # chosen by scheme they were what the study measured: experiments/LOG.md, "the learning rate's"
        seeds=3,
        more_seeds={"uniform": 10, "atrl": 10, "token_level": 10, "oracle": 6},
        variants=("small_clusters",),
    ),
    # Planned before they ran, to test what the others suggest: on fresh seeds, and from a checkpoint of its own.
    "geometry_again": Task(
        overrides=("data.selection_size=512", "trainer.grounding_samples=512"),
        schemes=("uniform", "token_level", "random_soft", "dependency_15", "visual_dependency", "shuffled_patches"),
        rates=(4e-4,),
        uniform_rates=(6e-4,),
        first_seed=10,
        seeds=10,
        controls=(),
        variants=(),
    ),
    "wordy_again": Task(
        overrides=("experiment=wordy", "data.selection_size=512", "trainer.grounding_samples=512"),
        checkpoint=("experiment=wordy_checkpoint", "seed=1"),
        schemes=(  # in order of plans
            *("uniform", "token_level", *PARTS, "entropy", "atrl", "oracle", "hidden_cosine"),
            *(*BY_DEPENDENCY, *MIXED, "two_heads"),
        ),
        rates=(4e-4,),
        own_rates=dict.fromkeys((*PARTS, "entropy", "dependency_only"), (2e-4, 4e-4)),  # parts may want a lower one
        more_seeds=dict.fromkeys(
            ("uniform", "token_level", "oracle", "dependency_15", "visual_dependency", *MIXED), 10
        ),
        controls=(),
        variants=(),
    ),
    "wordy_fresh": Task(
        overrides=("experiment=wordy", "data.selection_size=512", "trainer.grounding_samples=512"),
        checkpoint=("experiment=wordy_checkpoint", "seed=1"),
        checkpoint_of="wordy_again",
        schemes=("uniform", "oracle", "shuffled_patches"),
        rates=(4e-4,),
        first_seed=10,
        seeds=8,
        more_seeds={},
        controls=(),
        variants=(),
    ),
    # The command of wordy_again's checkpoint on another processor, where it trains another one.
    "wordy_third": Task(
        overrides=("experiment=wordy", "data.selection_size=512", "trainer.grounding_samples=512"),
        checkpoint=("experiment=wordy_checkpoint", "seed=1"),
        schemes=("uniform", "found_reading", *WITH_EXTRAS),
        rates=(4e-4,),
        first_seed=20,
        seeds=4,
        more_seeds={},
        controls=(),
        variants=(),
    ),
    "easy_vqa": Task(
        overrides=("data=easy_vqa", "data.selection_limit=512", "trainer.grounding_samples=512"),
        checkpoint=("experiment=easy_vqa", "stage=sft"),
        schemes=tuple(scheme for scheme in SCHEMES if scheme not in ("oracle_only", *FOUND_LATER)),
        rates=(1e-4, 2e-4, 4e-4),
        variants=(),
    ),
}
