"""Comparison of hand-written with automatic gradients, for our layers and for anybody's."""

from .catalogue import CASES as CASES
from .catalogue import Case as Case
from .compare import Difference as Difference
from .compare import Report as Report
from .compare import compare as compare
from .layers import check_gradient as check_gradient
from .layers import check_layer as check_layer
from .models import automatic as automatic
from .models import check_model as check_model
from .oracles import central_differences as central_differences
from .oracles import complex_step as complex_step
