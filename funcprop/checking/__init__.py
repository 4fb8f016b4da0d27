"""Comparison of hand-written with automatic gradients, for our layers and for anybody's."""

from ..cases.catalogue import CASES as CASES
from ..cases.catalogue import Case as Case
from .comparison import compare as compare
from .diagnosis.finding import MISTAKES as MISTAKES
from .diagnosis.finding import Finding as Finding
from .functions import check_gradient as check_gradient
from .layers import check_layer as check_layer
from .models import automatic as automatic
from .models import check_model as check_model
from .oracles import central_differences as central_differences
from .oracles import complex_step as complex_step
from .page import write_html as write_html
from .report import Difference as Difference
from .report import Report as Report
from .rules import Diverged as Diverged
from .rules import check_rule as check_rule
from .rules import replay as replay
from .rules import watch as watch
