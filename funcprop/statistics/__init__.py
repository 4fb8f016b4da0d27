"""Statistics: what else a backward sweep has in hand at every site."""

from .clipping import Clipped as Clipped
from .clipping import clipped_gradient as clipped_gradient
from .derivatives import Jacobian as Jacobian
from .derivatives import gauss_newton_vector_product as gauss_newton_vector_product
from .derivatives import hessian_vector_product as hessian_vector_product
from .derivatives import jacobian as jacobian
from .derivatives import saliency as saliency
from .moments import Moments as Moments
from .moments import NoiseScale as NoiseScale
from .moments import moments as moments
from .per_example import InnerProducts as InnerProducts
from .per_example import SquaredNorms as SquaredNorms
from .per_example import inner_products as inner_products
from .per_example import inner_products_between as inner_products_between
from .per_example import mean_gradient as mean_gradient
from .per_example import pairs as pairs
from .per_example import per_example_gradients as per_example_gradients
from .per_example import squared_norms as squared_norms
from .statistic import AtSite as AtSite
from .statistic import Statistic as Statistic
from .statistic import combine as combine
