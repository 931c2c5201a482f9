//! [`DictionaryWeights`]: the tensors of a dictionary.

use tch::Tensor;

/// The tensors of a dictionary, under SAELens' names, each feature a row.
#[derive(Debug)]
pub struct DictionaryWeights {
    /// What each feature reads: `[feature, d_in]`, the transpose of SAELens'.
    pub w_enc: Tensor,
    /// `[feature]`; of a gated dictionary, `b_mag`.
    pub b_enc: Tensor,
    /// What each feature writes: `[feature, d_out]`.
    pub w_dec: Tensor,
    /// `[d_out]`
    pub b_dec: Tensor,
    /// What is added to the reconstruction is `x W_skipᵀ`: `[d_out, d_in]`.
    pub w_skip: Option<Tensor>,
    /// The thresholds of a JumpReLU dictionary: `[feature]`.
    pub threshold: Option<Tensor>,
    /// The gates' bias in a gated dictionary: `[feature]`.
    pub b_gate: Option<Tensor>,
    /// The logarithm of what magnitudes are multiplied by in a gated dictionary: `[feature]`.
    pub r_mag: Option<Tensor>,
}

/// All but the decoders.
pub(crate) struct Encoder {
    pub(crate) w_enc: Tensor,
    pub(crate) b_enc: Tensor,
    pub(crate) b_dec: Tensor,
    pub(crate) w_skip: Option<Tensor>,
    pub(crate) threshold: Option<Tensor>,
    pub(crate) b_gate: Option<Tensor>,
    pub(crate) r_mag: Option<Tensor>,
}
