//! [`LocalReplacement`]: a frozen model with its units, and the effects of all sources on some targets.

use tch::Tensor;

use super::columns::{Columns, Kind, Order, Place};
use super::frozen::{bias_of_heads, FrozenCross, FrozenLayer, FrozenModel};
use super::rows::Row;
use super::units::{Reading, Units};
use super::wave::{doubles, index, Placed, Wave};
use crate::tensor::scalar::Scalar;
use crate::{Error, Result};

/// A model in which units (features or neurons) stand for MLPs, and everything else is linear, as it was in one run.
pub(super) struct LocalReplacement<'m> {
    pub(super) frozen: FrozenModel<'m>,
    /// The units of each layer that has some.
    pub(super) units: Vec<Option<Box<dyn Units + 'm>>>,
    /// What each head of each layer writes, where heads are nodes: `[pos, head, d_model]`.
    pub(super) heads: Option<Vec<Tensor>>,
    pub(super) columns: Columns,
}

/// A target, and what it reads.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Target {
    /// A unit or a head, by its number among the sources.
    Node(usize),
    /// A logit, by its number among the graph's logits.
    Logit(usize),
}

/// The logits of a graph: a direction each of what the unembedding reads, at the last position.
pub(super) struct LogitDirections {
    /// `[logit, d_model]`
    pub(super) directions: Tensor,
    /// The centred bias of the unembedding.
    pub(super) biases: Vec<f64>,
    /// The centred logit before any cap.
    pub(super) values: Vec<f64>,
}

impl<'m> LocalReplacement<'m> {
    /// The columns of units, heads, errors and tokens.
    pub(super) fn columns_of(
        units: &[Option<Box<dyn Units + 'm>>],
        heads: Option<&[Tensor]>,
        (n_pos, encoder_positions): (usize, usize),
        order: Order,
    ) -> Columns {
        let none = vec![0; n_pos + 1];
        let each = |n: usize| (0..=n_pos).map(|position| n * position).collect::<Vec<usize>>();
        let mut groups = Vec::new();
        for (layer, units) in units.iter().enumerate() {
            let starts = units.as_ref().map_or(none.clone(), |units| units.table().starts.clone());
            groups.push((Kind::Units(layer), starts));
        }
        for (layer, heads) in heads.into_iter().flatten().enumerate() {
            groups.push((Kind::Heads(layer), each(heads.size()[1] as usize)));
        }
        for (layer, units) in units.iter().enumerate() {
            let has_errors = units.as_ref().is_some_and(|units| units.errors().is_some());
            groups.push((Kind::Errors(layer), each(usize::from(has_errors))));
        }
        groups.push((Kind::Tokens, each(1)));
        if encoder_positions > 0 {
            // All of them come before every position.
            let starts = std::iter::once(0).chain(std::iter::repeat_n(encoder_positions, n_pos));
            groups.push((Kind::Encoder, starts.collect()));
        }
        Columns::new(groups, order)
    }

    /// Where a target reads, and at which position.
    pub(super) fn place(&self, target: Target) -> Result<(Place, usize)> {
        match target {
            Target::Logit(_) => Ok((Place::Logits, self.frozen.n_pos - 1)),
            Target::Node(column) => match self.columns.locate(column) {
                Some((Kind::Units(layer), group, index)) => Ok((Place::Mlp(layer), group.position(index))),
                Some((Kind::Heads(layer), group, index)) => Ok((Place::Heads(layer), group.position(index))),
                _ => Err(Error::Internal("a graph's target is no unit and no head")),
            },
        }
    }

    /// The edges from all sources to some targets, in any order: `each` gets a target, its row and its edges. About `at_once` rows are
    /// computed together.
    pub(super) fn rows(
        &self,
        targets: &[Target],
        logits: &LogitDirections,
        at_once: usize,
        mut each: impl FnMut(Target, Row, Vec<f32>) -> Result<()>,
    ) -> Result<()> {
        let mut placed =
            targets.iter().map(|target| Ok((*target, self.place(*target)?))).collect::<Result<Vec<_>>>()?;
        // A row has gradients up to its position: rows of similar positions go together.
        placed.sort_by_key(|(_, (place, position))| (*position, *place));
        for chunk in placed.rchunks_mut(at_once.max(1)) {
            // A row begins at its place: the later ones first.
            chunk.sort_by_key(|(_, (place, _))| std::cmp::Reverse(*place));
            for (target, row, edges) in self.chunk(chunk, logits)? {
                each(target, row, edges)?;
            }
        }
        Ok(())
    }

    fn chunk(&self, targets: &[Placed], logits: &LogitDirections) -> Result<Vec<(Target, Row, Vec<f32>)>> {
        let last = match self.columns.order.causal {
            true => targets.iter().map(|(_, (_, position))| *position).max().unwrap_or(0),
            false => self.frozen.n_pos - 1,
        };
        let mut wave = Wave::new(&self.columns, last + 1, targets.len());
        let at = |place: Place| {
            let start = targets.partition_point(|(_, (of, _))| *of > place);
            let end = targets.partition_point(|(_, (of, _))| *of >= place);
            &targets[start..end]
        };
        self.begin_logits(&mut wave, at(Place::Logits), logits)?;
        for (layer, frozen) in self.frozen.layers.iter().enumerate().rev() {
            let (mlp, heads) = (at(Place::Mlp(layer)), at(Place::Heads(layer)));
            self.through_layer(&mut wave, layer, frozen, mlp, heads)?;
        }
        let tokens = self.frozen.embed.f_unsqueeze(0)?; // [1, pos, d_model]
        wave.add_each(Kind::Tokens, &tokens)?;
        if let Some(pos_embed) = &self.frozen.pos_embed {
            wave.add_constant(&pos_embed.f_unsqueeze(0)?)?;
        }
        Ok(targets.iter().zip(wave.rows).map(|((target, _), (row, edges))| (*target, row, edges)).collect())
    }

    fn begin_logits(&self, wave: &mut Wave, targets: &[Placed], logits: &LogitDirections) -> Result<()> {
        if targets.is_empty() {
            return Ok(());
        }
        let numbers: Vec<usize> = targets
            .iter()
            .filter_map(|(target, _)| match target {
                Target::Logit(number) => Some(*number),
                Target::Node(_) => None,
            })
            .collect();
        let chosen = index(&numbers, &logits.directions)?;
        let directions = logits.directions.f_index_select(0, &chosen)?;
        let (vectors, constants) = self.frozen.pull_logits(&directions)?;
        let constants = doubles(&constants)?;
        let of = numbers.iter().zip(constants);
        let facts: Vec<(f64, f64)> =
            of.map(|(n, constant)| (logits.values[*n], constant + logits.biases[*n])).collect();
        wave.begin(targets, &facts, wave.at_positions(targets, &vectors)?)
    }

    /// Backwards through a layer: the effects of what it adds, and the targets that begin in it.
    fn through_layer(
        &self,
        wave: &mut Wave,
        layer: usize,
        frozen: &FrozenLayer<'_>,
        mlp: &[Placed],
        heads: &[Placed],
    ) -> Result<()> {
        let mut read_by_skip = None;
        if wave.gradients.is_some() {
            wave.through_norm(frozen.of_stream_after_mlp.as_ref())?;
            wave.through_factor(frozen.layer_factor.as_ref())?;
            // At its gate, the sublayer is linear in what it makes of the token.
            if let Some(ple) = &frozen.layer_embedding {
                wave.add_each(Kind::Tokens, ple)?;
            }
            read_by_skip = self.mlp(wave, layer, frozen)?;
            wave.through_factor(frozen.factor_before_mlp.as_ref())?;
        }
        if self.columns.order.parallel {
            self.attention(wave, layer, frozen)?;
            wave.add_gradients(read_by_skip)?;
            self.begin_units(wave, layer, frozen, mlp)?;
        } else {
            wave.add_gradients(read_by_skip)?;
            self.begin_units(wave, layer, frozen, mlp)?;
            if let Some(cross) = &frozen.cross {
                wave.through_norm(cross.of_stream_after.as_ref())?;
                self.cross_attention(wave, cross)?;
            }
            wave.through_norm(frozen.of_stream_after_attn.as_ref())?;
            self.attention(wave, layer, frozen)?;
        }
        wave.add_deferred(layer)?;
        self.begin_heads(wave, layer, frozen, heads)
    }

    /// The effects of what the MLP of a layer adds; returns what a skip connection passes on to the stream before it.
    fn mlp(&self, wave: &mut Wave, layer: usize, frozen: &FrozenLayer<'_>) -> Result<Option<Tensor>> {
        let Some(gradients) = wave.gradients.as_ref().map(Tensor::shallow_clone) else { return Ok(None) };
        let mut before_norm = None;
        for (of, units) in self.units.iter().enumerate() {
            let Some(units) = units.as_ref().filter(|units| units.writes_to(layer)) else { continue };
            let at = match (units.writes_before_norm(), &before_norm) {
                (false, _) => gradients.shallow_clone(),
                (true, Some(pulled)) => Tensor::shallow_clone(pulled),
                (true, None) => before_norm.insert(frozen.after_mlp.pull(&gradients, true)?).shallow_clone(),
            };
            wave.add_units(layer, of, units.as_ref(), &at)?;
        }
        let Some(units) = &self.units[layer] else { return Ok(None) };
        let inner = units.writes_before_norm();
        let through = |rows: &Tensor| -> Result<Tensor> {
            match inner {
                true => frozen.after_mlp.with_bias(frozen.after_mlp.apply(rows)?),
                false => Ok(rows.shallow_clone()),
            }
        };
        wave.add_constant(&through(units.constant())?)?;
        if let Some(errors) = units.errors() {
            let errors = if inner { frozen.after_mlp.apply(errors)? } else { errors.shallow_clone() };
            wave.add_each(Kind::Errors(layer), &errors)?;
        }
        let Some((matrix, reading)) = units.skip() else { return Ok(None) };
        let at = match (inner, before_norm) {
            (false, _) => gradients,
            (true, Some(pulled)) => pulled,
            (true, None) => frozen.after_mlp.pull(&gradients, true)?,
        };
        let read = at.f_matmul(matrix)?;
        Ok(Some(match reading {
            Reading::Stream => read,
            Reading::Quotient => frozen.before_mlp.pull(&read, false)?,
            Reading::Normed => {
                if let Some(bias) = &frozen.before_mlp.b {
                    let constant = bias.f_view([1, 1, -1])?.f_expand_as(&read.f_narrow(0, 0, 1)?)?;
                    wave.add_product(&read, &constant)?;
                }
                frozen.before_mlp.pull(&read, true)?
            }
        }))
    }

    /// Backwards through attention, or the effects of heads where these are nodes.
    fn attention(&self, wave: &mut Wave, layer: usize, frozen: &FrozenLayer<'_>) -> Result<()> {
        let Some(gradients) = wave.gradients.as_ref().map(Tensor::shallow_clone) else { return Ok(()) };
        if let Some(heads) = &self.heads {
            let written = &heads[layer]; // [pos, head, d_model]
            wave.add_constant(&bias_of_heads(frozen, &frozen.attention.z_of_nothing)?)?;
            let pulled = frozen.after_attn.pull(&gradients, true)?;
            let by_position = pulled.f_transpose(0, 1)?; // [pos, row, d_model]
            let effects = by_position.f_matmul(&written.f_narrow(0, 0, wave.pos)?.f_transpose(1, 2)?)?; // [pos, row, head]
            let effects = effects.f_transpose(0, 1)?.f_reshape([gradients.size()[0], -1])?;
            wave.add(Kind::Heads(layer), &effects)?;
            return wave.through_factor(frozen.factor_before_attn.as_ref());
        }
        wave.add_constant(&frozen.attn_of_nothing)?;
        let written = frozen.after_attn.pull(&gradients, true)?;
        let read = frozen.attention.pull_from_z(frozen.attention.pull_to_z(&written)?)?;
        drop(written);
        wave.through_factor(frozen.factor_before_attn.as_ref())?;
        wave.defer(frozen.values_of, &self.frozen.layers[frozen.values_of].before_attn.pull(&read, true)?)
    }

    /// The effects of what cross-attention reads at each position of the encoder's output.
    fn cross_attention(&self, wave: &mut Wave, cross: &FrozenCross<'_>) -> Result<()> {
        let Some(gradients) = wave.gradients.as_ref().map(Tensor::shallow_clone) else { return Ok(()) };
        wave.add_constant(&cross.of_nothing)?;
        let written = cross.after.pull(&gradients, true)?;
        let read = cross.attention.pull_from_z(cross.attention.pull_to_z(&written)?)?; // [row, encoder_pos, d_encoder]
        let Some(encoder) = &self.frozen.encoder else { return Ok(()) };
        wave.add(Kind::Encoder, &read.f_mul(encoder)?.f_sum_dim_intlist([-1i64].as_slice(), false, None)?)
    }

    fn begin_units(&self, wave: &mut Wave, layer: usize, frozen: &FrozenLayer<'_>, targets: &[Placed]) -> Result<()> {
        let Some(units) = self.units[layer].as_ref().filter(|_| !targets.is_empty()) else { return Ok(()) };
        let first = self.columns.group(Kind::Units(layer)).map_or(0, |group| group.first);
        let chosen: Vec<usize> = targets
            .iter()
            .filter_map(|(target, _)| match target {
                Target::Node(column) => Some(column - first),
                Target::Logit(_) => None,
            })
            .collect();
        let readers = units.readers(&chosen)?;
        let table = units.table();
        let mut facts: Vec<(f64, f64)> = chosen
            .iter()
            .map(|unit| (f64::from(table.pre_activations[*unit]), f64::from(table.biases[*unit])))
            .collect();
        let positions: Vec<usize> = targets.iter().map(|(_, (_, position))| *position).collect();
        let places = index(&positions, &readers.vectors)?;
        let vectors = match readers.reading {
            Reading::Stream => readers.vectors,
            Reading::Quotient => frozen.before_mlp.pull_rows(&readers.vectors, &places, false)?,
            Reading::Normed => {
                if let Some(bias) = &frozen.before_mlp.b {
                    let constants = doubles(&readers.vectors.f_matmul(&bias.f_to_kind(readers.vectors.f_kind()?)?)?)?;
                    facts.iter_mut().zip(constants).for_each(|((_, constant), more)| *constant += more);
                }
                frozen.before_mlp.pull_rows(&readers.vectors, &places, true)?
            }
        };
        wave.begin(targets, &facts, wave.at_positions(targets, &vectors)?)
    }

    /// A head as a target reads its own output along the direction that it has in the run.
    fn begin_heads(&self, wave: &mut Wave, layer: usize, frozen: &FrozenLayer<'_>, targets: &[Placed]) -> Result<()> {
        let Some(written) = self.heads.as_ref().map(|heads| &heads[layer]).filter(|_| !targets.is_empty()) else {
            return Ok(());
        };
        let Some(group) = self.columns.group(Kind::Heads(layer)) else { return Ok(()) };
        let per_position = written.size()[1] as usize;
        let of: Vec<usize> = targets
            .iter()
            .filter_map(|(target, _)| match target {
                Target::Node(column) => Some(column - group.first),
                Target::Logit(_) => None,
            })
            .collect();
        let flat = written.f_flatten(0, 1)?; // [pos · head, d_model]
        let outputs = flat.f_index_select(0, &index(&of, &flat)?)?; // [row, d_model]
        let norms = outputs.norm_over(&[-1], true)?;
        let heads: Vec<usize> = of.iter().map(|index| index % per_position).collect();
        let positions: Vec<usize> = of.iter().map(|index| index / per_position).collect();
        let (positions, heads) = (index(&positions, &flat)?, index(&heads, &flat)?);
        // A head that writes nothing has no direction.
        let directions = outputs.f_div(&norms)?.f_nan_to_num(Some(0.0), None, None)?;
        let at_z = frozen.attention.pull_heads(&directions, &positions, &heads, wave.pos)?; // [row, pos, head, d_value]
        let nothing = frozen.attention.z_of_nothing.f_narrow(1, 0, wave.pos)?.f_reshape([-1i64])?;
        let constants = doubles(&at_z.f_reshape([of.len() as i64, -1])?.f_matmul(&nothing)?)?;
        let facts: Vec<(f64, f64)> = doubles(&norms)?.into_iter().zip(constants).collect();
        let read = frozen.attention.pull_from_z(at_z)?;
        let gradients = self.frozen.layers[frozen.values_of].before_attn.pull(&read, true)?;
        if frozen.values_of == layer {
            return wave.begin(targets, &facts, gradients);
        }
        wave.begin(targets, &facts, gradients.f_zeros_like()?)?;
        wave.defer(frozen.values_of, &gradients)
    }
}
