//! [`Entry`]: where a part of the model lies in a checkpoint, and how to read and write it there.
//!
//! A family is a table of entries. A [`View`] works in both directions: it shows the part within a checkpoint's tensor, and puts a
//! part back. Reading copies nothing: a part is copied once, when it is laid out in the model.

use tch::{Kind, Tensor};

use crate::model::part::Location;
use crate::tensor::scalar::Scalar;
use crate::{Config, Result};

pub(crate) use crate::model::part::Part;

/// Where a part lies: the checkpoint's name, with `{l}` for the layer, `{e}` for the expert and `{h}` for the head, and how
/// the part is seen in that tensor.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry {
    pub(crate) part: Part,
    pub(crate) name: &'static str,
    pub(crate) view: View,
    /// The first block that has the part, and the first that has it no more.
    pub(super) blocks: (usize, usize),
    /// The checkpoint's number of block 0.
    pub(super) first: usize,
    /// Which blocks have the part together.
    pub(super) shared: Option<Shared>,
}

/// Layers that share their weights (ALBERT): `runs` runs of groups of `of_group` layers, of which there are `groups`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shared {
    pub(crate) runs: usize,
    pub(crate) groups: usize,
    pub(crate) of_group: usize,
}

/// An [`Entry`].
pub(crate) const fn entry(part: Part, name: &'static str, view: View) -> Entry {
    Entry { part, name, view, blocks: (0, usize::MAX), first: 0, shared: None }
}

impl Entry {
    /// The tensor's name for this block, expert and head.
    pub(crate) fn tensor_name(&self, location: Location, head: usize) -> String {
        let replace = |name: String, placeholder, index: usize| name.replace(placeholder, &index.to_string());
        if let (Some(Shared { runs, groups, of_group }), Some(layer)) = (self.shared, location.layer) {
            let name = replace(self.name.into(), "{g}", layer / of_group * groups / runs);
            return replace(name, "{i}", layer % of_group);
        }
        let name = replace(self.name.into(), "{l}", location.layer.unwrap_or(0) + self.first);
        replace(replace(name, "{e}", location.expert.unwrap_or(0)), "{h}", head)
    }

    /// Only these blocks have the part.
    pub(crate) fn in_blocks(self, blocks: std::ops::Range<usize>) -> Self {
        Entry { blocks: (blocks.start, blocks.end), ..self }
    }

    /// The checkpoint counts these blocks from this number on.
    pub(crate) fn counted_from(self, first: usize) -> Self {
        Entry { first, ..self }
    }

    /// These layers have the part together: `{g}` in the name is the layer's group, and `{i}` its number in the group.
    pub(crate) fn shared(self, shared: Shared) -> Self {
        Entry { shared: Some(shared), ..self }
    }

    /// Whether it is a part of blocks.
    pub(crate) fn is_per_block(&self) -> bool {
        self.shared.is_some() || self.name.contains("{l}")
    }

    /// Whether the part is there at this place.
    pub(crate) fn is_at(&self, location: Location) -> bool {
        location.layer.is_none_or(|layer| (self.blocks.0..self.blocks.1).contains(&layer))
    }

    /// Whether it is a part of experts.
    pub(crate) fn is_per_expert(&self) -> bool {
        use View::*;
        let one_of_all = matches!(
            self.view,
            ExpertEverySecond(_) | ExpertTransposed | Expert | ExpertHalf(_) | ExpertHalfTransposed(_)
        ) || matches!(self.view, ExpertRows | ExpertRowsTransposed);
        one_of_all || self.name.contains("{e}")
    }

    /// Whether it is of this part at this place.
    pub(crate) fn is_of(&self, part: Part, location: Location) -> bool {
        self.part == part && self.is_at(location) && self.is_per_expert() == location.expert.is_some()
    }

    /// Whether a checkpoint's name is that of this entry, of some block, expert and head.
    pub(crate) fn is_named(&self, name: &str) -> bool {
        let mut parts = name.split('.');
        let number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
        let same = |own: &str| match own {
            "{l}" | "{e}" | "{h}" | "{g}" | "{i}" => parts.next().is_some_and(number),
            own => parts.next() == Some(own),
        };
        self.name.split('.').all(same) && parts.next().is_none()
    }

    /// Whether each head has a tensor of its own.
    pub(crate) fn is_per_head(&self) -> bool {
        self.name.contains("{h}")
    }
}

/// How a part is seen in a checkpoint's tensor.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum View {
    /// Unchanged: a `Linear`'s weight, a bias, a gain.
    AsIs,
    /// A vector as the only row of a matrix (BART's bias of logits).
    #[allow(dead_code)] // BART's families will have it
    OnlyRow,
    /// A `Conv1D`'s weight, `[in, out]`.
    Transposed,
    /// A gain stored as its difference from one (Gemma).
    PlusOne,
    /// Multiplied by `√d_model` (Gemma's embedding).
    TimesSqrtDModel,
    /// Multiplied by this number (Granite's embedding, sublayers and logits).
    Times(f64),
    /// The rows from this one on (OPT's positions).
    RowsFrom(i64),
    /// Queries, keys or values out of `[q; k; v]`.
    QkvBlock(usize),
    /// The same of a `Conv1D`: `[in, q k v]`.
    QkvBlockTransposed(usize),
    /// Queries, keys or values out of `[head, 3, d_head]` rows (NeoX, BLOOM).
    QkvPerHead(usize),
    /// Queries, keys or values out of `[kv_head, query heads of the group + 2, d_head]` rows (Falcon).
    QkvPerGroup(usize),
    /// Queries (0), values (1) or keys (2) out of `[4, 3, rows]` rows: a quarter of the heads after the other (CodeGen).
    QkvPerQuarter(usize),
    /// The first or second half of the rows (Phi-3's gate and up).
    Half(usize),
    /// TransformerLens' `[head, d_model, d_head]`, of Q, K and V.
    Heads,
    /// The same of values, which may have another width.
    ValueHeads,
    /// TransformerLens' `[head, d_value, d_model]`, of O.
    HeadsOut,
    /// TransformerLens' `[head, d_head]`, of the biases.
    Flat,
    /// The same of values.
    ValueFlat,
    /// One expert of `[expert, in, 2 · out]` (or `[expert, 2 · out]`), every second column from this one on (gpt-oss).
    ExpertEverySecond(usize),
    /// One expert of `[expert, in, out]`.
    ExpertTransposed,
    /// One expert of `[expert, out]` or `[expert, out, in]`.
    Expert,
    /// One expert's first or second half of the rows of `[expert, 2 · out, in]` (Granite's gate and up).
    ExpertHalf(usize),
    /// One expert's first or second half of the columns of `[expert, in, 2 · out]` (Llama 4's).
    ExpertHalfTransposed(usize),
    /// One expert of `[expert · out, in]` (DBRX).
    ExpertRows,
    /// One expert of `[expert · in, out]`.
    ExpertRowsTransposed,
    /// The rows of all experts of heads below each other: `[expert, out, in]`.
    HeadExpertRows,
    /// Their columns side by side.
    HeadExpertColumns,
}

impl View {
    /// Whether the part has other numbers than the checkpoint.
    pub(crate) fn computes(self) -> bool {
        matches!(self, View::PlusOne | View::TimesSqrtDModel | View::Times(_))
    }

    /// Whether the checkpoint has a matrix the other way round: a `Conv1D`'s.
    pub(crate) fn is_transposed(self) -> bool {
        matches!(self, View::Transposed | View::QkvBlockTransposed(_))
    }

    /// Whether the part is one expert of a tensor of all.
    pub(crate) fn is_of_expert(self) -> bool {
        matches!(self, View::ExpertEverySecond(_) | View::ExpertTransposed | View::Expert)
    }

    /// The unembedding's view of the embedding, where they are one tensor: either may have its own factor.
    pub(crate) fn of_the_embedding(self) -> Self {
        if let View::Times(_) = self {
            self
        } else {
            View::AsIs
        }
    }

    /// The shape of the checkpoint's tensor, for a part of shape `shape`.
    pub(crate) fn checkpoint_shape(self, shape: &[i64], config: &Config, location: Location) -> Vec<i64> {
        let reversed = |shape: &[i64]| shape.iter().rev().copied().collect::<Vec<_>>();
        let with_rows = |rows: i64| [&[rows], &shape[1..]].concat();
        let (d_head, d_value) = widths(config, location);
        let head_experts = config.attention.experts.map_or(1, |it| it.num_experts.max(1) as i64);
        let (n_heads, n_kv_heads) = (config.n_heads as i64, config.n_key_value_heads as i64);
        let qkv = with_rows((n_heads + n_kv_heads) * d_head + n_kv_heads * d_value);
        let experts = config.num_experts().unwrap_or(0) as i64;
        match self {
            View::AsIs | View::PlusOne | View::TimesSqrtDModel | View::Times(_) => shape.to_vec(),
            View::OnlyRow => [&[1], shape].concat(),
            View::Transposed => reversed(shape),
            View::RowsFrom(row) => with_rows(shape[0] + row),
            View::QkvBlock(_) | View::QkvPerGroup(_) => qkv,
            View::QkvBlockTransposed(_) => reversed(&qkv),
            View::QkvPerHead(_) | View::QkvPerQuarter(_) => with_rows(3 * shape[0]),
            View::Half(_) => with_rows(2 * shape[0]),
            View::Heads => vec![shape[0] / d_head, shape[1], d_head],
            View::ValueHeads => vec![shape[0] / d_value, shape[1], d_value],
            View::HeadsOut => vec![shape[1] / d_value, d_value, shape[0]],
            View::Flat => vec![shape[0] / d_head, d_head],
            View::ValueFlat => vec![shape[0] / d_value, d_value],
            View::ExpertEverySecond(_) => [&[experts], reversed(&with_rows(2 * shape[0])).as_slice()].concat(),
            View::ExpertTransposed => [&[experts], reversed(shape).as_slice()].concat(),
            View::Expert => [&[experts], shape].concat(),
            View::ExpertHalf(_) => [&[experts], with_rows(2 * shape[0]).as_slice()].concat(),
            View::ExpertHalfTransposed(_) => [&[experts], reversed(&with_rows(2 * shape[0])).as_slice()].concat(),
            View::ExpertRows => with_rows(experts * shape[0]),
            View::ExpertRowsTransposed => vec![experts * shape[1], shape[0]],
            View::HeadExpertRows => vec![head_experts, shape[0] / head_experts, shape[1]],
            View::HeadExpertColumns => vec![head_experts, shape[0], shape[1] / head_experts],
        }
    }

    /// The part within `tensor`, which has the shape that [`View::checkpoint_shape`] gives.
    ///
    /// A view computes in `kind`, the model's.
    pub(crate) fn read(self, tensor: &Tensor, config: &Config, location: Location, kind: Kind) -> Result<Tensor> {
        Ok(match self {
            View::AsIs => tensor.shallow_clone(),
            View::OnlyRow => tensor.f_squeeze_dim(0)?,
            View::HeadExpertRows => tensor.f_flatten(0, 1)?,
            View::HeadExpertColumns => tensor.f_permute([1, 0, 2])?.f_flatten(1, 2)?,
            View::Transposed => tensor.f_transpose(0, -1)?,
            View::PlusOne => tensor.f_to_kind(kind)?.add_number(1.0)?,
            View::TimesSqrtDModel => tensor.f_to_kind(kind)?.f_mul(&sqrt_d_model(config, tensor, kind)?)?,
            View::Times(factor) => tensor.f_to_kind(kind)?.mul_number(factor)?,
            View::Heads | View::ValueHeads => tensor.f_transpose(1, 2)?.f_flatten(0, 1)?,
            View::HeadsOut => tensor.f_flatten(0, 1)?.f_tr()?,
            View::Flat | View::ValueFlat => tensor.f_flatten(0, -1)?,
            View::QkvPerHead(_) | View::QkvPerQuarter(_) => self.region(tensor, config, location)?.f_flatten(0, 1)?,
            View::QkvPerGroup(_) => self.region(tensor, config, location)?.f_flatten(0, 2)?,
            _ => self.region(tensor, config, location)?,
        })
    }

    /// The checkpoint's tensor of a part that is all of one; `None` where it is one of several in it.
    ///
    /// It shares the part's memory, unless the view computes.
    pub(crate) fn write(self, part: &Tensor, config: &Config, location: Location) -> Result<Option<Tensor>> {
        let (d_head, d_value) = widths(config, location);
        let head_experts = config.attention.experts.map_or(1, |it| it.num_experts.max(1) as i64);
        let heads = |width: i64| part.f_view([-1, width, part.size()[1]])?.f_transpose(1, 2); // [head, d_model, width]
        Ok(Some(match self {
            View::AsIs => part.shallow_clone(),
            View::OnlyRow => part.f_unsqueeze(0)?,
            View::HeadExpertRows => part.f_view([head_experts, -1, part.size()[1]])?,
            View::HeadExpertColumns => {
                part.f_view([part.size()[0], head_experts, -1])?.f_permute([1, 0, 2])?.f_contiguous()?
            }
            View::Transposed => part.f_transpose(0, -1)?,
            View::PlusOne => part.add_number(-1.0)?,
            View::TimesSqrtDModel => part.f_div(&sqrt_d_model(config, part, part.f_kind()?)?)?,
            View::Times(factor) => part.div_number(factor)?,
            View::Heads => heads(d_head)?,
            View::ValueHeads => heads(d_value)?,
            View::HeadsOut => part.f_tr()?.f_reshape([-1, d_value, part.size()[0]])?, // [head, d_value, d_model]
            View::Flat => part.f_view([-1, d_head])?,
            View::ValueFlat => part.f_view([-1, d_value])?,
            _ => return Ok(None),
        }))
    }

    /// Where a part lies in a tensor that holds several. Its entries are in the part's order, its axes may be more: heads and
    /// their width are two.
    pub(crate) fn region(self, tensor: &Tensor, config: &Config, location: Location) -> Result<Tensor> {
        let expert = location.expert.unwrap_or(0);
        let (n_heads, n_kv_heads) = (config.n_heads as i64, config.n_key_value_heads as i64);
        let (d_head, d_value) = widths(config, location);
        let block = |third: usize| match third {
            0 => (0, n_heads * d_head),
            1 => (n_heads * d_head, n_kv_heads * d_head),
            _ => ((n_heads + n_kv_heads) * d_head, n_kv_heads * d_value),
        };
        Ok(match self {
            View::RowsFrom(row) => tensor.f_slice(0, row, None, 1)?,
            View::QkvBlock(third) => {
                let (start, len) = block(third);
                tensor.f_narrow(0, start, len)?
            }
            View::QkvBlockTransposed(third) => {
                let (start, len) = block(third);
                tensor.f_narrow(-1, start, len)?.f_transpose(0, -1)?
            }
            View::QkvPerHead(third) => {
                let columns = tensor.size().get(1).copied();
                let shape: Vec<i64> = [n_heads, 3, d_head].into_iter().chain(columns).collect();
                tensor.f_reshape(shape)?.f_select(1, third as i64)? // [head, d_head], or [head, d_head, d_model]
            }
            View::QkvPerGroup(third) => {
                let columns = tensor.size().get(1).copied();
                let of_group = n_heads / n_kv_heads;
                let shape: Vec<i64> = [n_kv_heads, of_group + 2, d_head].into_iter().chain(columns).collect();
                let (start, len) = [(0, of_group), (of_group, 1), (of_group + 1, 1)][third];
                tensor.f_reshape(shape)?.f_narrow(1, start, len)? // [kv_head, head, d_head], or with d_model
            }
            View::QkvPerQuarter(third) => {
                let columns = tensor.size().get(1).copied();
                let shape: Vec<i64> = [4, 3, n_heads * d_head / 4].into_iter().chain(columns).collect();
                tensor.f_reshape(shape)?.f_select(1, third as i64)? // [quarter, rows], or with d_model
            }
            View::Half(half) => {
                let rows = tensor.size().first().copied().unwrap_or(0) / 2;
                tensor.f_narrow(0, half as i64 * rows, rows)?
            }
            View::ExpertEverySecond(first) => {
                let matrix = tensor.f_select(0, expert as i64)?;
                matrix.f_slice(-1, first as i64, None, 2)?.f_transpose(0, -1)?
            }
            View::ExpertTransposed => tensor.f_select(0, expert as i64)?.f_tr()?,
            View::Expert => tensor.f_select(0, expert as i64)?,
            View::ExpertHalf(half) => {
                let matrix = tensor.f_select(0, expert as i64)?; // [2 · out, in]
                let rows = matrix.size().first().copied().unwrap_or(0) / 2;
                matrix.f_narrow(0, half as i64 * rows, rows)?
            }
            View::ExpertHalfTransposed(half) => {
                let matrix = tensor.f_select(0, expert as i64)?; // [in, 2 · out]
                let columns = matrix.size().last().copied().unwrap_or(0) / 2;
                matrix.f_narrow(-1, half as i64 * columns, columns)?.f_transpose(0, -1)?
            }
            View::ExpertRows | View::ExpertRowsTransposed => {
                let rows =
                    tensor.size().first().copied().unwrap_or(0) / config.num_experts().unwrap_or(1).max(1) as i64;
                let matrix = tensor.f_narrow(0, expert as i64 * rows, rows)?;
                if self == View::ExpertRows {
                    matrix
                } else {
                    matrix.f_tr()?
                }
            }
            View::AsIs | View::OnlyRow | View::Transposed | View::HeadExpertRows | View::HeadExpertColumns => {
                tensor.shallow_clone()
            }
            View::PlusOne | View::TimesSqrtDModel | View::Times(_) => tensor.shallow_clone(),
            View::Heads | View::ValueHeads | View::HeadsOut | View::Flat | View::ValueFlat => tensor.shallow_clone(),
        })
    }
}

/// The widths of a block's heads and of their values.
fn widths(config: &Config, location: Location) -> (i64, i64) {
    let layer = location.layer.unwrap_or(0);
    (config.d_head_of(layer) as i64, config.d_value_of(layer) as i64)
}

/// `√d_model`, rounded to `kind` first, as transformers does.
fn sqrt_d_model(config: &Config, tensor: &Tensor, kind: Kind) -> Result<Tensor> {
    let factor = Tensor::f_from_slice(&[(config.d_model as f64).sqrt()])?;
    Ok(factor.f_to_kind(kind)?.f_to_device(tensor.device())?)
}
