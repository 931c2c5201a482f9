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
    /// Only what the head makes of a text's first token counts: that of a classifier of texts.
    #[serde(default)]
    pub of_first: bool,
    /// How many neurons there are, where they are not as many as `d_model`.
    #[serde(default)]
    pub width: Option<usize>,
}

impl HeadConfig {
    /// As many neurons as `d_model`, with a norm: BERT's.
    pub fn new(activation: Activation) -> Self {
        HeadConfig { activation, norm: true, of_first: false, width: None }
    }

    /// As many neurons as `d_model`, without a norm, that read a text's first token: the head of BERT's classifiers of texts.
    pub fn of_texts(activation: Activation) -> Self {
        HeadConfig { norm: false, of_first: true, ..HeadConfig::new(activation) }
    }
}
