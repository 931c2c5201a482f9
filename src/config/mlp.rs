//! [`MlpConfig`]: the MLP of every block, or the mixture of experts in its place.

use serde::{Deserialize, Serialize};

use super::{Normalization, PerLayer, Routing};

/// The MLP of every block.
///
/// ```
/// use tch_lens::config::{Activation, MlpConfig, MlpKind};
/// let gated = MlpConfig::gated(256, Activation::Silu);
/// assert_eq!(gated.kind, MlpKind::Gated);
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MlpConfig {
    /// Neurons of a layer; in a mixture, of each expert that a router chooses.
    pub d_mlp: usize,
    /// The activation function.
    pub activation: Activation,
    /// What the neurons compute.
    pub kind: MlpKind,
    /// The neurons of the layers where they are not so many; in a mixture, of its shared expert (Gemma 4).
    #[serde(default)]
    pub widths: PerLayer<Option<usize>>,
    /// The norm of the neurons, between them and `W_out` (BitNet). SoLU has a layer norm of its own there.
    #[serde(default)]
    pub norm: Option<Normalization>,
}

impl MlpConfig {
    fn of(d_mlp: usize, activation: Activation, kind: MlpKind) -> Self {
        MlpConfig { d_mlp, activation, kind, widths: PerLayer::default(), norm: None }
    }

    /// `W_out act(W_in x)`.
    pub fn plain(d_mlp: usize, activation: Activation) -> Self {
        MlpConfig::of(d_mlp, activation, MlpKind::Plain)
    }

    /// `W_out (act(W_gate x) · W_in x)`.
    pub fn gated(d_mlp: usize, activation: Activation) -> Self {
        MlpConfig::of(d_mlp, activation, MlpKind::Gated)
    }

    /// A mixture of gated MLPs of `d_mlp` neurons each.
    pub fn experts(d_mlp: usize, activation: Activation, experts: Experts) -> Self {
        MlpConfig::of(d_mlp, activation, MlpKind::Experts(experts))
    }
}

/// What the neurons of an MLP compute.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MlpKind {
    /// `act(pre)`.
    Plain,
    /// `act(gate) · pre_linear`.
    Gated,
    /// Several gated MLPs, of which a router chooses some for each token.
    Experts(Experts),
}

/// The MLP's activation function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// `max(x, 0)`.
    Relu,
    /// `max(x, 0)²` (So et al. 2021, "Primer").
    Relu2,
    /// `x Φ(x)`, exact.
    Gelu,
    /// The tanh approximation of [`Activation::Gelu`]: GPT-2's.
    GeluNew,
    /// The same approximation, under GPT-J's and Phi's name.
    GeluFast,
    /// The same approximation, under Gemma's name.
    GeluPytorchTanh,
    /// `x σ(1.702 x)`.
    QuickGelu,
    /// `x σ(x)`.
    Silu,
    /// `x softmax(x)`, then a layer norm of its own
    /// (Elhage et al. 2022, "Softmax Linear Units").
    SoluLn,
    /// `tanh(x)`.
    Tanh,
    /// The piecewise quadratic and exponential function of Apertus, with two trained parameters
    /// (Huang & Schlag 2024, "Deriving Activation Functions Using Integration").
    Xielu,
}

/// The experts of a mixture, and how a token is given to some of them.
///
/// ```
/// use tch_lens::config::{Experts, Routing};
/// let experts = Experts::new(8, 2, Routing::softmax().normalized());
/// assert!(experts.shared.is_none());
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Experts {
    /// How many experts a layer has.
    pub num_experts: usize,
    /// How many of them each token goes to.
    pub experts_per_token: usize,
    /// How the router's logits become weights.
    #[serde(default)]
    pub routing: Routing,
    /// What an expert does with its gate.
    #[serde(default)]
    pub gate: ExpertGate,
    /// The MLP that every token goes through beside its experts.
    #[serde(default)]
    pub shared: Option<SharedExpert>,
    /// Router, experts and shared expert each have a gain of their own for what they read, and a norm stands after the experts and one
    /// after the shared expert, before their outputs are added; each expert's weight has a trained factor (Gemma 4).
    #[serde(default)]
    pub separate_norms: bool,
    /// The layers that have one MLP in place of a mixture, with its number of neurons.
    #[serde(default)]
    pub dense: PerLayer<Option<usize>>,
}

impl Experts {
    /// A mixture in every layer, without a shared expert.
    pub fn new(num_experts: usize, experts_per_token: usize, routing: Routing) -> Self {
        let dense = PerLayer::default();
        Experts {
            num_experts,
            experts_per_token,
            routing,
            gate: ExpertGate::Plain,
            shared: None,
            separate_norms: false,
            dense,
        }
    }

    /// The neurons of a layer's MLP, where it has one in place of a mixture.
    pub fn dense(&self, layer: usize) -> Option<usize> {
        self.dense.get(layer).copied().flatten()
    }
}

/// A gated MLP that every token goes through beside its experts. Several shared experts are one of their joint width.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SharedExpert {
    /// Its neurons.
    pub d_mlp: usize,
    /// Its output is multiplied by `σ(w · x)`, a number for each token (Qwen 2 MoE).
    #[serde(default)]
    pub gated: bool,
}

/// What an expert does with its gate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExpertGate {
    /// `act(gate) · up`.
    #[default]
    Plain,
    /// gpt-oss': `gate σ(alpha gate) · (up + 1)`, with gate and up clamped to `limit`.
    ClampedSwiglu {
        /// The slope within the sigmoid.
        alpha: f64,
        /// The clamp.
        limit: f64,
    },
}
