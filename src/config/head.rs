//! [`HeadConfig`]: the neurons between the last norm and the unembedding.

use serde::{Deserialize, Serialize};

use super::Activation;

/// The neurons between the last norm and the unembedding, `norm(act(x W + b))`: the head of models that predict masked tokens (Devlin et
/// al. 2019, "BERT") and, without the norm, that of classifiers. TransformerLens' `BertMLMHead`.
///
/// ```
/// use tch_lens::config::{Activation, HeadConfig};
/// use tch_lens::Config;
/// let config = Config { head: Some(HeadConfig::new(Activation::Gelu)), ..Config::new(2, 64, 4, 100, 32) };
/// assert_eq!(config.d_unembed(), 64); // as many neurons as d_model
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeadConfig {
    /// The activation function.
    pub activation: Activation,
    /// Whether a norm, of the kind of the blocks' norms, stands between the neurons and the unembedding.
    pub norm: bool,
    /// How many neurons there are, where they are not as many as `d_model`.
    #[serde(default)]
    pub width: Option<usize>,
}

impl HeadConfig {
    /// As many neurons as `d_model`, with a norm: BERT's.
    pub fn new(activation: Activation) -> Self {
        HeadConfig { activation, norm: true, width: None }
    }
}
