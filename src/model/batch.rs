//! [`Batch`]: what a forward pass computes on.

use tch::Tensor;

use super::encoder_output::EncoderOutput;
use super::key_value_store::KeyValueStore;
use super::layout::Layout;

/// What a forward pass computes on.
pub(crate) struct Batch<'r> {
    /// Token ids: `[batch, pos]`.
    pub(crate) ids: &'r Tensor,
    /// The type of each token, `[batch, pos]`; absent where all have the first.
    pub(crate) token_types: Option<&'r Tensor>,
    /// The embeddings or the residual stream from which the pass starts, if not from ids: `[batch, pos, d_model]`.
    pub(crate) stream: Option<&'r Tensor>,
    /// Where the tokens stand.
    pub(crate) layout: &'r Layout,
    /// The positions before these.
    pub(crate) store: Option<&'r KeyValueStore>,
    /// What the cross-attention of a decoder reads.
    pub(crate) encoder: Option<&'r EncoderOutput>,
}
