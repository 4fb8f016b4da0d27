"""Backpropagation written out by hand, in JAX."""

import typing as _typing

from . import checking as checking
from . import statistics as statistics
from .checking.comparison import compare as compare
from .checking.diagnosis.finding import Finding as Finding
from .checking.functions import check_gradient as check_gradient
from .checking.layers import check_layer as check_layer
from .checking.models import check_model as check_model
from .checking.report import Difference as Difference
from .checking.report import Report as Report
from .checking.rules import check_rule as check_rule
from .core.checks import LayerError as LayerError
from .core.combinators import fork as fork
from .core.combinators import on as on
from .core.combinators import parallel as parallel
from .core.combinators import pick as pick
from .core.combinators import remat as remat
from .core.combinators import repeat as repeat
from .core.combinators import residual as residual
from .core.combinators import serial as serial
from .core.differentiable import differentiable as differentiable
from .core.frozen import statistics_of as statistics_of
from .core.frozen import with_statistics as with_statistics
from .core.layer import Layer as Layer
from .core.layer import identity as identity
from .core.layer import sites as sites
from .core.layer import stateless as stateless
from .core.loss import Loss as Loss
from .core.loss import no_parameters as no_parameters
from .core.precision import cast as cast
from .core.rule import Rule as Rule
from .core.sharing import share as share
from .core.site import Site as Site
from .core.site import gradient as gradient
from .core.summary import Row as Row
from .core.summary import Summary as Summary
from .core.summary import summary as summary
from .core.sweep import value_and_backprop as value_and_backprop
from .core.version import __version__ as __version__
from .data import datasets as datasets
from .layers.activations import celu as celu
from .layers.activations import elementwise as elementwise
from .layers.activations import elu as elu
from .layers.activations import gelu as gelu
from .layers.activations import gelu_tanh as gelu_tanh
from .layers.activations import hard_sigmoid as hard_sigmoid
from .layers.activations import hard_tanh as hard_tanh
from .layers.activations import leaky_relu as leaky_relu
from .layers.activations import log_softmax as log_softmax
from .layers.activations import mish as mish
from .layers.activations import relu as relu
from .layers.activations import relu6 as relu6
from .layers.activations import selu as selu
from .layers.activations import sigmoid as sigmoid
from .layers.activations import sigmoid_precise as sigmoid_precise
from .layers.activations import silu as silu
from .layers.activations import softmax as softmax
from .layers.activations import softplus as softplus
from .layers.activations import softsign as softsign
from .layers.activations import tanh as tanh
from .layers.activations import tanh_precise as tanh_precise
from .layers.attention import attention as attention
from .layers.batch_norm import batch_norm as batch_norm
from .layers.batch_norm import frozen_norm as frozen_norm
from .layers.bidirectional import bidirectional as bidirectional
from .layers.bidirectional import reverse as reverse
from .layers.convolution import conv as conv
from .layers.convolution import conv_transpose as conv_transpose
from .layers.dense import affine as affine
from .layers.dense import dense as dense
from .layers.diagonal import diagonal_recurrence as diagonal_recurrence
from .layers.dropout import dropout as dropout
from .layers.embedding import embedding as embedding
from .layers.embedding import positional as positional
from .layers.embedding import sinusoidal as sinusoidal
from .layers.function import function as function
from .layers.gated import geglu as geglu
from .layers.gated import glu as glu
from .layers.gated import swiglu as swiglu
from .layers.graph import graph_conv as graph_conv
from .layers.graph_attention import graph_attention as graph_attention
from .layers.graph_pool import graph_pool as graph_pool
from .layers.gru import gru as gru
from .layers.lstm import lstm as lstm
from .layers.message_passing import message_passing as message_passing
from .layers.mixture_of_experts import mixture_of_experts as mixture_of_experts
from .layers.normalization import group_norm as group_norm
from .layers.normalization import layer_norm as layer_norm
from .layers.normalization import rms_norm as rms_norm
from .layers.pooling import avg_pool as avg_pool
from .layers.pooling import global_avg_pool as global_avg_pool
from .layers.pooling import max_pool as max_pool
from .layers.recurrent_weights import from_pytorch as from_pytorch
from .layers.rnn import rnn as rnn
from .layers.rotary import rotary as rotary
from .layers.sequence import last_step as last_step
from .layers.shape import concatenate as concatenate
from .layers.shape import flatten as flatten
from .layers.shape import reshape as reshape
from .layers.shape import transpose as transpose
from .layers.ssm import ssm as ssm
from .layers.transformer import decoder_block as decoder_block
from .layers.transformer import multi_head_attention as multi_head_attention
from .layers.transformer import transformer_block as transformer_block
from .layers.tree import tree_rnn as tree_rnn
from .layers.tree_lstm import tree_lstm as tree_lstm
from .learning.alignment import alignment as alignment
from .learning.backpropagation import backpropagation as backpropagation
from .learning.difference_target_propagation import DifferenceTargetState as DifferenceTargetState
from .learning.difference_target_propagation import (
    difference_target_propagation as difference_target_propagation,
)
from .learning.direct_feedback_alignment import (
    direct_feedback_alignment as direct_feedback_alignment,
)
from .learning.direct_random_target_projection import (
    direct_random_target_projection as direct_random_target_projection,
)
from .learning.dp_sgd import dp_sgd as dp_sgd
from .learning.equilibrium_propagation import equilibrium_propagation as equilibrium_propagation
from .learning.evolution_strategies import evolution as evolution
from .learning.evolution_strategies import evolution_strategies as evolution_strategies
from .learning.feedback_alignment import feedback_alignment as feedback_alignment
from .learning.forward_forward import forward_forward as forward_forward
from .learning.forward_gradient import forward_gradient as forward_gradient
from .learning.greedy import GreedyState as GreedyState
from .learning.greedy import greedy as greedy
from .learning.hebbian import hebbian as hebbian
from .learning.indirect_feedback_alignment import (
    indirect_feedback_alignment as indirect_feedback_alignment,
)
from .learning.kfac import KfacState as KfacState
from .learning.kfac import kfac as kfac
from .learning.kolen_pollack import KolenPollackState as KolenPollackState
from .learning.kolen_pollack import kolen_pollack as kolen_pollack
from .learning.predictive_coding import fixed_prediction as fixed_prediction
from .learning.predictive_coding import predictive_coding as predictive_coding
from .learning.predictive_coding import zil as zil
from .learning.sign_symmetry import sign_symmetry as sign_symmetry
from .learning.weight_mirror import weight_mirror as weight_mirror
from .losses.auxiliary import auxiliary as auxiliary
from .losses.auxiliary import weighted as weighted
from .losses.standard import hinge as hinge
from .losses.standard import huber as huber
from .losses.standard import kl_divergence as kl_divergence
from .losses.standard import mean_absolute_error as mean_absolute_error
from .losses.standard import mean_squared_error as mean_squared_error
from .losses.standard import sigmoid_cross_entropy as sigmoid_cross_entropy
from .losses.standard import softmax_cross_entropy as softmax_cross_entropy
from .losses.vocabulary import linear_cross_entropy as linear_cross_entropy
from .multilayer_perceptron import apply as apply
from .multilayer_perceptron import backprop as backprop
from .multilayer_perceptron import init as init
from .multilayer_perceptron import mlp as mlp
from .training.calibration import calibrate as calibrate
from .training.evaluation import accuracy as accuracy
from .training.evaluation import evaluate as evaluate
from .training.fit import TrainState as TrainState
from .training.fit import fit as fit
from .training.fit import init_state as init_state
from .training.fit import update_step as update_step
from .training.stopping import not_finite as not_finite
from .training.stopping import patience as patience
from .training.stopping import until as until

if not _typing.TYPE_CHECKING:  # a type checker would take every name to be there

    def __getattr__(name):
        from .core.elsewhere import missing

        known = [key for key in globals() if not key.startswith("_")]
        raise AttributeError(missing(name, known), name=name)
