"""Where the time of a step goes, against where its FLOPs are."""

from groundup.profiling.bottleneck import Bottleneck, bottleneck
from groundup.profiling.measure import profile_model, write_profile
from groundup.profiling.points import RooflinePoint, roofline_points
from groundup.profiling.result import GroupRow, OperationRow, Profile
from groundup.profiling.settings import ProfileSettings
from groundup.profiling.shares import FlopShares, flop_shares
from groundup.profiling.timeline import Timeline

__all__ = [
    "Bottleneck", "FlopShares", "GroupRow", "OperationRow", "Profile", "ProfileSettings", "RooflinePoint", "Timeline",
    "bottleneck", "flop_shares", "profile_model", "roofline_points", "write_profile",
]  # fmt: skip
