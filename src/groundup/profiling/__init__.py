"""Where the time of a step goes, against where its FLOPs are."""

from groundup.profiling.bottleneck import Bottleneck, bottleneck
from groundup.profiling.measure import profile_model, write_profile
from groundup.profiling.result import GroupRow, OperationRow, Profile
from groundup.profiling.settings import ProfileSettings
from groundup.profiling.timeline import Timeline

__all__ = [
    "Bottleneck", "GroupRow", "OperationRow", "Profile", "ProfileSettings", "Timeline",
    "bottleneck", "profile_model", "write_profile",
]  # fmt: skip
