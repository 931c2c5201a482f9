//! [`DictionaryConfig`]: where a dictionary reads and writes, and what it computes.

use super::kind::FeatureActivation;
use super::normalization::InputNormalization;
use crate::hook::HookPoint;

/// Where a dictionary reads and writes, and what it computes.
///
/// ```
/// use tch_lens::sae::{DictionaryConfig, FeatureActivation};
/// use tch_lens::hook;
/// // A transcoder of an MLP.
/// let config = DictionaryConfig {
///     hook_out: hook::mlp_out(3),
///     apply_b_dec_to_input: false,
///     ..DictionaryConfig::new(hook::ln2_normalized(3), FeatureActivation::TopK(32))
/// };
/// assert!(config.is_transcoder());
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct DictionaryConfig {
    /// The activation that is encoded.
    pub hook_in: HookPoint,
    /// The activation that is reconstructed: the same one, or another one (a transcoder).
    pub hook_out: HookPoint,
    /// How features follow from their pre-activations.
    pub activation: FeatureActivation,
    /// What happens to the activation before it is encoded.
    pub normalization: InputNormalization,
    /// Whether `b_dec` is subtracted from the activation before it is encoded.
    pub apply_b_dec_to_input: bool,
    /// Whether pre-activations are multiplied by the norms of the decoder's rows before the activation function, and activations
    /// divided by them before they are decoded.
    pub rescale_by_decoder_norm: bool,
    /// Whether the activation has heads, which are read side by side: SAELens' `reshape_activations: hook_z`.
    pub flatten_heads: bool,
    /// The name of the model that it was trained on, if that is known; for people and for checks of files.
    pub model_name: Option<String>,
}

impl DictionaryConfig {
    /// A sparse autoencoder at `hook`, of this kind, which subtracts `b_dec` from its input, as SAELens' do by default.
    pub fn new(hook: HookPoint, activation: FeatureActivation) -> Self {
        DictionaryConfig {
            hook_in: hook,
            hook_out: hook,
            activation,
            normalization: InputNormalization::None,
            apply_b_dec_to_input: true,
            rescale_by_decoder_norm: false,
            flatten_heads: false,
            model_name: None,
        }
    }

    /// Whether it reconstructs another activation than it reads.
    pub fn is_transcoder(&self) -> bool {
        self.hook_in != self.hook_out
    }
}
