//! [`Part`]: every weight that a transformer can have, and how a checkpoint's tensor is seen as one.
//!
//! A family is a table of [`Entry`]s: this part lies in the tensor of that name, seen that way. Everything is a view of the
//! checkpoint, so that nothing is copied before it is laid out in the model.

use tch::{Kind, Tensor};

use crate::tensor::scalar::Scalar;
use crate::{Config, Result};

/// A weight of a transformer. Matrices are in libtorch's orientation, `[out, in]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Part {
    /// Token embedding: `[d_vocab, d_model]`.
    WE,
    /// Position embedding: `[n_ctx, d_model]`.
    WPos,
    EmbedLnW,
    EmbedLnB,
    Ln1W,
    Ln1B,
    /// `[n_heads · d_head, d_model]`
    Q,
    QB,
    /// `[n_kv_heads · d_head, d_model]`
    K,
    KB,
    V,
    VB,
    QNormW,
    QNormB,
    KNormW,
    KNormB,
    /// `[n_heads]`
    Sinks,
    /// `[d_model, n_heads · d_head]`
    O,
    OB,
    Ln1PostW,
    Ln1PostB,
    Ln2W,
    Ln2B,
    /// `[d_mlp, d_model]`; of a mixture, each expert's.
    In,
    InB,
    /// `[d_mlp, d_model]`
    Gate,
    GateB,
    /// TransformerLens' bias of a gated MLP, added to the product of gate and linear part: `[d_mlp]`.
    ProductB,
    MlpLnW,
    MlpLnB,
    /// `[d_model, d_mlp]`
    Out,
    OutB,
    /// `[num_experts, d_model]`
    Router,
    RouterB,
    /// xIELU's four, of one entry each.
    XieluAlphaP,
    XieluAlphaN,
    /// The alphas as they are used: their softplus, and for the negative half plus beta.
    XieluPositive,
    XieluNegative,
    XieluBeta,
    XieluEps,
    Ln2PostW,
    Ln2PostB,
    LnFinalW,
    LnFinalB,
    /// `[d_vocab_out, d_model]`
    U,
    UB,
}

/// Where a part lies: the checkpoint's name, with `{l}` for the layer, `{e}` for the expert and `{h}` for the head, and how
/// it is seen.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry {
    pub(crate) part: Part,
    pub(crate) name: &'static str,
    pub(crate) view: View,
}

/// Where a part lies.
pub(crate) const fn at(part: Part, name: &'static str, view: View) -> Entry {
    Entry { part, name, view }
}

/// How a checkpoint's tensor is seen as a part.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum View {
    /// As it is: a `Linear`'s weight, a bias, a gain.
    AsIs,
    /// A `Conv1D`'s weight, `[in, out]`.
    Transposed,
    /// The same two, but turned round in memory: our own files lay matrices out as their names say, and keep a list
    /// of those that the model has the other way round.
    AsIsTurned,
    TransposedTurned,
    /// A gain stored as its difference from one (Gemma).
    PlusOne,
    /// Multiplied by `√d_model` (Gemma's embedding).
    TimesSqrtDModel,
    /// The rows from this one on (OPT's positions).
    RowsFrom(i64),
    /// Queries, keys or values out of `[q; k; v]`.
    QkvBlock(usize),
    /// The same of a `Conv1D`: `[in, q k v]`.
    QkvBlockTransposed(usize),
    /// Queries, keys or values out of `[head, 3, d_head]` rows (NeoX, BLOOM).
    QkvPerHead(usize),
    /// The first or second half of the rows (Phi-3's gate and up).
    Half(usize),
    /// TransformerLens' `[head, d_model, d_head]`, of Q, K and V.
    Heads,
    /// TransformerLens' `[head, d_head, d_model]`, of O.
    HeadsOut,
    /// The same, turned round in memory.
    HeadsOutTurned,
    /// TransformerLens' `[head, d_head]`, of the biases.
    Flat,
    /// One expert of `[expert, in, 2 · out]` (or `[expert, 2 · out]`), every second column from this one on (gpt-oss).
    ExpertEverySecond(usize),
    /// One expert of `[expert, in, out]`.
    ExpertTransposed,
    /// One expert of `[expert, out]` or `[expert, out, in]`.
    Expert,
}

impl View {
    /// The same view, with the matrix turned round in memory.
    pub(crate) fn turned(self) -> Self {
        match self {
            View::AsIs => View::AsIsTurned,
            View::Transposed => View::TransposedTurned,
            View::HeadsOut => View::HeadsOutTurned,
            other => other,
        }
    }

    /// Whether it has other numbers than the checkpoint.
    pub(crate) fn computes(self) -> bool {
        matches!(self, View::PlusOne | View::TimesSqrtDModel)
    }

    /// Whether it is no view of the checkpoint, but new memory.
    pub(crate) fn copies(self) -> bool {
        matches!(self, View::AsIsTurned | View::TransposedTurned | View::HeadsOutTurned)
    }

    /// The shape that a tensor has in a checkpoint for this view of it to have `shape`.
    pub(crate) fn stored(self, shape: &[i64], config: &Config) -> Vec<i64> {
        let reversed = |shape: &[i64]| shape.iter().rev().copied().collect::<Vec<_>>();
        let with_rows = |rows: i64| [&[rows], &shape[1..]].concat();
        let d_head = config.d_head as i64;
        let qkv = with_rows((config.n_heads + 2 * config.n_key_value_heads) as i64 * d_head);
        let experts = config.num_experts().unwrap_or(0) as i64;
        match self {
            View::AsIs | View::AsIsTurned | View::PlusOne | View::TimesSqrtDModel => shape.to_vec(),
            View::Transposed | View::TransposedTurned => reversed(shape),
            View::RowsFrom(row) => with_rows(shape[0] + row),
            View::QkvBlock(_) => qkv,
            View::QkvBlockTransposed(_) => reversed(&qkv),
            View::QkvPerHead(_) => with_rows(3 * shape[0]),
            View::Half(_) => with_rows(2 * shape[0]),
            View::Heads => vec![shape[0] / d_head, shape[1], d_head],
            View::HeadsOut | View::HeadsOutTurned => vec![shape[1] / d_head, d_head, shape[0]],
            View::Flat => vec![shape[0] / d_head, d_head],
            View::ExpertEverySecond(_) => [&[experts], reversed(&with_rows(2 * shape[0])).as_slice()].concat(),
            View::ExpertTransposed => [&[experts], reversed(shape).as_slice()].concat(),
            View::Expert => [&[experts], shape].concat(),
        }
    }

    /// The part within `tensor`, which has the shape that [`View::stored`] gives.
    ///
    /// What is computed rather than seen is computed in `kind`, the model's.
    pub(crate) fn of(self, tensor: &Tensor, config: &Config, expert: usize, kind: Kind) -> Result<Tensor> {
        let (n_q, n_kv) = (config.n_heads as i64, config.n_key_value_heads as i64);
        let d_head = config.d_head as i64;
        let block = |which: usize| match which {
            0 => (0, n_q * d_head),
            1 => (n_q * d_head, n_kv * d_head),
            _ => ((n_q + n_kv) * d_head, n_kv * d_head),
        };
        let size = tensor.size();
        Ok(match self {
            View::AsIs => tensor.shallow_clone(),
            View::Transposed => tensor.f_transpose(0, -1)?,
            View::AsIsTurned => tensor.f_tr()?.f_contiguous()?.f_tr()?,
            View::TransposedTurned => tensor.f_tr()?.f_contiguous()?,
            View::PlusOne => tensor.f_to_kind(kind)?.add_number(1.0)?,
            View::TimesSqrtDModel => {
                // As transformers: the factor is rounded to the model's kind first.
                let factor = Tensor::f_from_slice(&[(config.d_model as f64).sqrt()])?.f_to_kind(kind)?;
                tensor.f_to_kind(kind)?.f_mul(&factor)?
            }
            View::RowsFrom(row) => tensor.f_slice(0, row, None, 1)?,
            View::QkvBlock(which) => {
                let (start, len) = block(which);
                tensor.f_narrow(0, start, len)?
            }
            View::QkvBlockTransposed(which) => {
                let (start, len) = block(which);
                tensor.f_narrow(-1, start, len)?.f_transpose(0, -1)?
            }
            View::QkvPerHead(which) => {
                let rest = size.get(1).copied().into_iter();
                let shape: Vec<i64> = [n_q, 3, d_head].into_iter().chain(rest.clone()).collect();
                let flat: Vec<i64> = [n_q * d_head].into_iter().chain(rest).collect();
                tensor.f_reshape(shape)?.f_select(1, which as i64)?.f_reshape(flat)?
            }
            View::Half(which) => {
                let half = size.first().copied().unwrap_or(0) / 2;
                tensor.f_narrow(0, which as i64 * half, half)?
            }
            View::Heads => tensor.f_transpose(1, 2)?.f_flatten(0, 1)?,
            View::HeadsOut => tensor.f_flatten(0, 1)?.f_tr()?,
            View::HeadsOutTurned => tensor.f_flatten(0, 1)?.f_tr()?.f_contiguous()?,
            View::Flat => tensor.f_flatten(0, -1)?,
            View::ExpertEverySecond(first) => {
                let one = tensor.f_select(0, expert as i64)?;
                one.f_slice(-1, first as i64, None, 2)?.f_transpose(0, -1)?
            }
            View::ExpertTransposed => tensor.f_select(0, expert as i64)?.f_tr()?,
            View::Expert => tensor.f_select(0, expert as i64)?,
        })
    }
}
