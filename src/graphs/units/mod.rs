//! Units: what MLPs are made of in a graph, neurons or features of transcoders.

mod features;
mod neurons;

use tch::Tensor;

pub(super) use features::{places_of_set, FeatureUnits, Places};
pub(super) use neurons::{numbers, NeuronUnits};

use super::node::AttributionNode;
use crate::hook::HookPoint;
use crate::Result;

/// Where the units of a layer read the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reading {
    /// The stream itself.
    Stream,
    /// The quotient of the norm before the MLP.
    Quotient,
    /// What that norm gives.
    Normed,
}

/// The active units of a layer, position by position.
#[derive(Debug, Default)]
pub(super) struct UnitTable {
    /// Where the units of each position begin, and where the last ones end: one more than there are positions.
    pub(super) starts: Vec<usize>,
    /// The number of each unit in its layer.
    pub(super) ids: Vec<u32>,
    /// What multiplies each unit's direction: `[unit]`.
    pub(super) values: Tensor,
    /// The same numbers.
    pub(super) activations: Vec<f32>,
    /// What each unit reads in the run, with its bias.
    pub(super) pre_activations: Vec<f32>,
    /// The bias of each unit.
    pub(super) biases: Vec<f32>,
}

impl UnitTable {
    pub(super) fn len(&self) -> usize {
        self.ids.len()
    }

    /// The position of a unit.
    pub(super) fn position(&self, unit: usize) -> usize {
        self.starts.partition_point(|start| *start <= unit).saturating_sub(1)
    }
}

/// What the units of some nodes read: a direction each, `[node, d_model]`.
pub(super) struct Readers {
    pub(super) vectors: Tensor,
    pub(super) reading: Reading,
}

/// The active units of a layer, with what they read and write.
pub(super) trait Units {
    fn table(&self) -> &UnitTable;

    /// What a unit is, by its number in the table and its position.
    fn node(&self, unit: usize, pos: usize) -> AttributionNode;

    /// Whether they write to what the MLP of a layer adds.
    fn writes_to(&self, layer: usize) -> bool;

    /// Whether they write before any norm after the MLP.
    fn writes_before_norm(&self) -> bool;

    /// The product of gradients at what they write to in a layer, `[row, d_model]` at a position, with what each unit of the position writes
    /// per unit of activation: `[row, unit]`.
    fn effects(&self, layer: usize, position: usize, gradients: &Tensor) -> Result<Tensor>;

    /// What units read, by their numbers in the table.
    fn readers(&self, units: &[usize]) -> Result<Readers>;

    /// What the MLP of their layer adds that no unit does, nor any function of the stream: `[1, pos, d_model]`, in front of the norm after
    /// the MLP where units write there.
    fn constant(&self) -> &Tensor;

    /// What is left of the MLP's output, at the place where units write: `[1, pos, d_model]`.
    fn errors(&self) -> Option<&Tensor>;

    /// The matrix of a linear connection from what units read to what they write, `[d_model, d_model]`, out by in.
    fn skip(&self) -> Option<(&Tensor, Reading)>;
}

/// Points of a run, without repetition.
pub(super) fn add_points(points: &mut Vec<HookPoint>, more: impl IntoIterator<Item = HookPoint>) {
    for point in more {
        if !points.contains(&point) {
            points.push(point);
        }
    }
}
