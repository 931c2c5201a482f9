//! [`NeuronUnits`]: a layer's own neurons as units.

use tch::{Kind, Tensor};

use super::super::node::AttributionNode;
use super::super::wave::index;
use super::{Readers, Reading, UnitTable, Units};
use crate::analysis::frozen_norm::FrozenNorm;
use crate::analysis::window::View;
use crate::hook::{self, HookPoint};
use crate::model::block::MlpOrExperts;
use crate::model::linear::Linear;
use crate::model::Transformer;
use crate::tensor::precision::widened;
use crate::tensor::routed::hits;
use crate::tensor::scalar::Scalar;
use crate::Result;

/// The neurons of a layer: of its MLP, or of the shared and the chosen experts of each position. In a gated MLP, gates are frozen, and a
/// neuron reads what its gate multiplies.
pub(in crate::graphs) struct NeuronUnits<'m> {
    table: UnitTable,
    layer: usize,
    groups: Vec<Group<'m>>,
    constant: Tensor,
}

/// Neurons of one linear map.
struct Group<'m> {
    /// The number of the first neuron in the layer.
    first: usize,
    expert: Option<usize>,
    input: &'m Linear,
    /// `[d_model, neuron]`, in fp32 or better.
    out: Tensor,
    /// What multiplies each entry of what it reads, and the norm after it, where a mixture's parts have some of their own: `[d_model]`.
    gain: Option<Tensor>,
    after: Option<FrozenNorm>,
    /// What multiplies the input at each position, where a router weighs inputs.
    input_weights: Option<Vec<f32>>,
    /// The units of each position, as the numbers of neurons of the group; `None` stands for all of them.
    active: Vec<Active>,
}

/// The active neurons of a group at a position.
enum Active {
    None,
    All,
    Some(Tensor),
}

impl<'m> NeuronUnits<'m> {
    /// The points of a run that it is made of.
    pub(in crate::graphs) fn points(model: &Transformer, layer: usize) -> Result<Vec<HookPoint>> {
        let of_mlp = |gated: bool| match gated {
            true => vec![hook::post(layer), hook::pre_linear(layer)],
            false => vec![hook::post(layer), hook::pre(layer)],
        };
        Ok(match model.mlp_or_experts(layer)? {
            None => Vec::new(),
            Some(MlpOrExperts::Mlp(mlp)) => of_mlp(mlp.gate.is_some()),
            Some(MlpOrExperts::Experts(mixture)) => {
                let mut points = vec![hook::expert_weights(layer), hook::expert_indices(layer)];
                if let Some(shared) = &mixture.shared {
                    points.extend(of_mlp(shared.mlp.gate.is_some()));
                    points.extend(shared.weight.is_some().then(|| hook::shared_gate(layer)));
                }
                if let Some(norms) = model.norms_after_parts(layer)? {
                    points.extend(norms.map(|norm| norm.points.0));
                }
                let experts = 0..mixture.experts.len();
                points.extend(experts.flat_map(|e| [hook::expert_pre(layer, e), hook::expert_post(layer, e)]));
                points
            }
        })
    }

    /// The neurons of a layer in a run of one prompt; `None` where the layer has none.
    pub(in crate::graphs) fn of_run(model: &'m Transformer, layer: usize, view: &View) -> Result<Option<Self>> {
        let Some(mlp_or_experts) = model.mlp_or_experts(layer)? else { return Ok(None) };
        let inputs: Vec<(&Linear, Tensor, Option<Vec<f32>>)> = match mlp_or_experts {
            MlpOrExperts::Mlp(mlp) => vec![(&mlp.w_in, pre_of_mlp(layer, mlp.gate.is_some(), view)?, None)],
            MlpOrExperts::Experts(mixture) => {
                let mut inputs = Vec::new();
                if let Some(shared) = &mixture.shared {
                    inputs.push((&shared.mlp.w_in, pre_of_mlp(layer, shared.mlp.gate.is_some(), view)?, None));
                }
                let indices = view.get_as_kept(hook::expert_indices(layer))?; // [1, pos, chosen]
                let weights = mixture.input_weights(&view.get(hook::expert_weights(layer))?, &indices)?;
                for (number, expert) in mixture.experts.iter().enumerate() {
                    let rows = widened(view.cache.get(hook::expert_pre(layer, number))?)?; // [hit, neuron]
                    let (place, row) = hits(&indices, number)?;
                    let shape = [indices.size()[1], rows.size()[1]];
                    let pre = Tensor::f_zeros(shape, (rows.f_kind()?, rows.device()))?.f_index_copy(0, &row, &rows)?;
                    let input_weights = weights.as_ref().map(|weights| -> Result<Vec<f32>> {
                        let flat = weights.f_flatten(0, 1)?; // [pos, chosen]
                        let of_hits = flat.f_index(&[Some(&row), Some(&place)])?;
                        let zeros = Tensor::f_zeros([shape[0]], (of_hits.f_kind()?, of_hits.device()))?;
                        numbers(&zeros.f_index_copy(0, &row, &of_hits)?)
                    });
                    inputs.push((&expert.w_in, pre, input_weights.transpose()?));
                }
                inputs
            }
        };
        let outs = model.neuron_writers(layer)?;
        let gains = model.gains_of_parts(layer)?;
        let norms = model.norms_after_parts(layer)?;
        // Of the experts, and of the shared expert.
        let part = |expert: Option<usize>| usize::from(expert.is_none());
        let activations = view.weighted_neurons(layer)?; // [1, pos, neuron] each
        let n_pos = activations.first().map_or(0, |x| x.size()[1] as usize);
        let mut groups = Vec::with_capacity(outs.len());
        let mut first = 0;
        let mut of_groups = Vec::new();
        for ((writer, (input, pre, input_weights)), activation) in outs.iter().zip(inputs).zip(&activations) {
            let n = activation.size()[2] as usize;
            groups.push(Group {
                first,
                expert: writer.expert,
                input,
                out: widened(&writer.out.weight)?,
                input_weights,
                gain: gains[part(writer.expert)].as_ref().map(Tensor::shallow_clone),
                after: norms.map(|norms| FrozenNorm::of_run(Some(norms[part(writer.expert)]), view)).transpose()?,
                active: Vec::new(),
            });
            let bias = match &input.bias {
                Some(bias) => numbers(bias)?,
                None => vec![0.0; n],
            };
            of_groups.push((numbers(activation)?, numbers(&pre)?, bias));
            first += n;
        }
        let (mut table, mut values) = (UnitTable::default(), Vec::new());
        for position in 0..n_pos {
            table.starts.push(table.ids.len());
            for (group, (activation, pre, bias)) in groups.iter_mut().zip(&of_groups) {
                let row = position * bias.len()..(position + 1) * bias.len();
                let mut active = Vec::new();
                for (neuron, (value, pre)) in activation[row.clone()].iter().zip(&pre[row]).enumerate() {
                    if *value != 0.0 {
                        active.push(neuron as i64);
                        table.ids.push((group.first + neuron) as u32);
                        table.pre_activations.push(*pre);
                        table.biases.push(bias[neuron]);
                        values.push(*value);
                    }
                }
                group.active.push(match active.len() {
                    0 => Active::None,
                    n if n == bias.len() => Active::All,
                    _ => Active::Some(Tensor::f_from_slice(&active)?.f_to_device(model.device())?),
                });
            }
        }
        table.starts.push(table.ids.len());
        let out = &groups.first().map(|group| &group.out);
        let options = out.map_or((Kind::Float, model.device()), |out| (out.kind(), out.device()));
        table.values = Tensor::f_from_slice(&values)?.f_to_device(options.1)?.f_to_kind(options.0)?;
        table.activations = values;
        let shape = [1, n_pos as i64, model.config().d_model as i64];
        let nothing = Tensor::f_zeros(shape, options)?;
        let constant = match view.neuron_bias(layer)? {
            Some(bias) => nothing.f_add(&bias.f_to_kind(options.0)?)?,
            None => nothing,
        };
        Ok(Some(NeuronUnits { table, layer, groups, constant }))
    }
}

impl NeuronUnits<'_> {
    fn group_of(&self, unit: usize) -> &Group<'_> {
        let id = self.table.ids[unit] as usize;
        &self.groups[self.groups.partition_point(|group| group.first <= id).saturating_sub(1)]
    }
}

impl Units for NeuronUnits<'_> {
    fn table(&self) -> &UnitTable {
        &self.table
    }

    fn node(&self, unit: usize, pos: usize) -> AttributionNode {
        let (layer, group, neuron) = (self.layer, self.group_of(unit), self.table.ids[unit] as usize);
        let neuron = neuron - group.first;
        match group.expert {
            None => AttributionNode::Neuron { layer, pos, neuron },
            Some(expert) => AttributionNode::ExpertNeuron { layer, pos, expert, neuron },
        }
    }

    fn writes_to(&self, layer: usize) -> bool {
        layer == self.layer
    }

    fn writes_before_norm(&self) -> bool {
        true
    }

    fn effects(&self, _: usize, position: usize, gradients: &Tensor) -> Result<Tensor> {
        let mut parts = Vec::new();
        for group in &self.groups {
            let gradients = match (&group.after, &group.active[position]) {
                (None, _) | (_, Active::None) => gradients.shallow_clone(),
                (Some(norm), _) => {
                    let rows = vec![position; gradients.size()[0] as usize];
                    norm.pull_rows(gradients, &index(&rows, gradients)?, true)?
                }
            };
            match &group.active[position] {
                Active::None => {}
                Active::All => parts.push(gradients.f_matmul(&group.out)?),
                Active::Some(neurons) => parts.push(gradients.f_matmul(&group.out)?.f_index_select(1, neurons)?),
            }
        }
        match parts.len() {
            0 => Ok(gradients.f_narrow(1, 0, 0)?),
            1 => Ok(parts.remove(0)),
            _ => Ok(Tensor::f_cat(&parts, 1)?),
        }
    }

    fn readers(&self, units: &[usize]) -> Result<Readers> {
        let mut vectors = Vec::with_capacity(units.len());
        for unit in units {
            let id = self.table.ids[*unit] as usize;
            let group = self.group_of(*unit);
            let vector = widened(&group.input.weight.f_select(0, (id - group.first) as i64)?)?;
            let vector = match &group.gain {
                Some(gain) => vector.f_mul(gain)?,
                None => vector,
            };
            vectors.push(match &group.input_weights {
                Some(weights) => {
                    let weight = f64::from(weights[self.table.position(*unit)]);
                    vector.mul_number(weight)?
                }
                None => vector,
            });
        }
        Ok(Readers { vectors: Tensor::f_stack(&vectors, 0)?, reading: Reading::Normed })
    }

    fn constant(&self) -> &Tensor {
        &self.constant
    }

    fn errors(&self) -> Option<&Tensor> {
        None
    }

    fn skip(&self) -> Option<(&Tensor, Reading)> {
        None
    }
}

/// What the neurons of an MLP read: of a gated one, what gates multiply. `[pos, neuron]`.
fn pre_of_mlp(layer: usize, gated: bool, view: &View) -> Result<Tensor> {
    let point = if gated { hook::pre_linear(layer) } else { hook::pre(layer) };
    Ok(view.get(point)?.f_squeeze_dim(0)?)
}

/// The entries of a tensor, in its order.
pub(in crate::graphs) fn numbers(tensor: &Tensor) -> Result<Vec<f32>> {
    let flat = tensor.f_to_device(tch::Device::Cpu)?.f_to_kind(Kind::Float)?.f_reshape([-1i64])?;
    Ok(Vec::<f32>::try_from(flat)?)
}
