//! A model's parts as a checkpoint's tensors: the tables of names that loading reads, written through.

use std::collections::btree_map::Entry::{Occupied, Vacant};
use std::collections::{BTreeMap, BTreeSet};

use tch::{Device, Kind, Tensor};

use super::family::transformer_lens;
use super::parts::{Entry, Part, View};
use crate::config::Positions;
use crate::model::parameters::PartTensor;
use crate::model::part::{Address, Location, Role};
use crate::model::Transformer;
use crate::tensor::scalar::full;
use crate::{CheckpointError, Config, Error, Result};

impl Transformer {
    /// The weights by TransformerLens' names and in its shapes, as views of the model's own memory: what
    /// [`LoadOptions::state_dict`](crate::LoadOptions::state_dict) reads.
    ///
    /// `embed.W_E` `[d_vocab, d_model]`, `pos_embed.W_pos` `[n_ctx, d_model]`, `blocks.0.attn.W_Q`
    /// `[head, d_model, d_head]`, `blocks.0.attn.b_Q` `[head, d_head]`, `blocks.0.attn.W_O` `[head, d_head, d_model]`,
    /// `blocks.0.mlp.W_in` `[d_model, d_mlp]`, `unembed.W_U` `[d_model, d_vocab_out]`, and so on; with grouped-query
    /// attention `_W_K` and its like `[kv_head, d_model, d_head]`; experts as `blocks.0.mlp.experts.3.W_in.weight`
    /// `[d_mlp, d_model]`. What TransformerLens has no name for: a gated MLP's `b_gate` and `b_up`, which it leaves
    /// out, and xIELU's `act_fn.positive` and `act_fn.negative`, its alphas as they are used.
    ///
    /// ```
    /// use tch_lens::HookedTransformer;
    /// let model = HookedTransformer::toy()?;
    /// let (name, w_q) = model.state_dict()?.into_iter().find(|(name, _)| name.ends_with("W_Q")).unwrap();
    /// assert_eq!(name, "blocks.0.attn.W_Q");
    /// assert_eq!(w_q.size(), [4, 128, 32]);
    /// # Ok::<(), tch_lens::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// libtorch's own.
    pub fn state_dict(&self) -> Result<Vec<(String, Tensor)>> {
        let parts = self.parts()?;
        let present: BTreeSet<Part> = parts.iter().map(|(address, _)| address.part).collect();
        let grouped = self.config().n_key_value_heads != self.config().n_heads;
        let table = transformer_lens::table(self.config(), grouped);
        let table: Vec<Entry> = table.into_iter().filter(|entry| present.contains(&entry.part)).collect();
        write(&parts, &table, self.config(), "TransformerLens' state dict")
    }
}

/// All that TransformerLens' state dict can hold of a model of this shape: each part with its name and shape there.
pub(crate) fn state_dict_layout(config: &Config) -> impl Iterator<Item = (Address, String, Vec<i64>)> + use<'_> {
    let table = transformer_lens::table(config, config.n_key_value_heads != config.n_heads);
    table.into_iter().flat_map(move |entry| {
        locations(&entry, config).into_iter().map(move |location| {
            let shape = entry.view.checkpoint_shape(&entry.part.shape(config, location), config, location);
            (Address { location, part: entry.part }, entry.tensor_name(location, 0), shape)
        })
    })
}

/// The parts of a model as the tensors of a checkpoint in `format`, which `table` describes.
///
/// A bias or gain that the model lacks is written as zeros or ones. One that the table lacks may be left out where it is
/// zero or one.
///
/// # Errors
///
/// [`Error::Checkpoint`] for a part that the checkpoint cannot hold.
pub(crate) fn write(
    parts: &[PartTensor],
    table: &[Entry],
    config: &Config,
    format: &str,
) -> Result<Vec<(String, Tensor)>> {
    let mut writer = Writer { config, format, names: Vec::new(), tensors: BTreeMap::new() };
    for (address, part) in parts {
        match table.iter().find(|entry| entry.is_of(address.part, address.location)) {
            Some(entry) => writer.add(entry, *address, part)?,
            None if is_neutral(address.part.role(), part)? || is_computed(*address, part, config)? => {}
            None => return Err(writer.error(*address, "the format has no such weight")),
        }
    }
    let present: BTreeSet<Address> = parts.iter().map(|(address, _)| *address).collect();
    let options = parts
        .first()
        .map_or(Ok((Kind::Float, Device::Cpu)), |(_, part)| part.f_kind().map(|kind| (kind, part.device())))?;
    for entry in table {
        for location in locations(entry, config) {
            let address = Address { location, part: entry.part };
            if present.contains(&address) {
                continue;
            }
            let neutral =
                neutral(entry.part.role()).ok_or_else(|| writer.error(address, "this model has no such weight"))?;
            writer.add(entry, address, &full(&entry.part.shape(config, location), neutral, options)?)?;
        }
    }
    writer.finish()
}

/// What a model computes with where it lacks a part of this role.
fn neutral(role: Role) -> Option<f64> {
    match role {
        Role::Bias => Some(0.0),
        Role::Gain => Some(1.0),
        Role::Matrix | Role::Parameter | Role::Constant => None,
    }
}

/// Whether a model computes the same without this part.
fn is_neutral(role: Role, part: &Tensor) -> Result<bool> {
    let Some(neutral) = neutral(role) else { return Ok(false) };
    let same = full(&part.size(), neutral, (part.f_kind()?, part.device()))?;
    Ok(part.f_equal(&same)?)
}

/// Whether a model of this shape computes the part itself.
fn is_computed(address: Address, part: &Tensor, config: &Config) -> Result<bool> {
    match (&config.positions, address.part) {
        (Positions::Sinusoidal(sinusoids), Part::WPos) => {
            let (kind, device) = (part.f_kind()?, part.device());
            Ok(sinusoids.table(config)?.f_to_device_(device, kind, false, true)?.f_equal(part)?)
        }
        _ => Ok(false),
    }
}

/// Whether a part that is read back is the part: but for a rounding, where a factor was divided by first.
pub(super) fn agree(view: View, again: &Tensor, part: &Tensor) -> Result<bool> {
    match view {
        View::Times(_) => {
            let epsilon = match part.f_kind()? {
                Kind::Half => 1e-3,
                Kind::BFloat16 => 1e-2,
                _ => 1e-6,
            };
            Ok(again.f_allclose(part, epsilon, 0.0, false)?)
        }
        _ => Ok(again.f_equal(part)?),
    }
}

/// The places of an entry's part in a model of this shape.
fn locations(entry: &Entry, config: &Config) -> Vec<Location> {
    if !entry.is_per_block() {
        return vec![Location::default()];
    }
    let of_expert = entry.is_per_expert();
    let has = |layer: &usize| entry.is_at(Location::block(*layer)) && entry.part.is_in_block(config, *layer, of_expert);
    let blocks = (0..config.n_layers).filter(has).map(Location::block);
    match config.num_experts().filter(|_| of_expert) {
        None => blocks.collect(),
        Some(experts) => blocks.flat_map(|block| (0..experts).map(move |expert| block.expert(expert))).collect(),
    }
}

/// A checkpoint in the making.
struct Writer<'a> {
    config: &'a Config,
    format: &'a str,
    /// In the order in which they were first written to.
    names: Vec<String>,
    tensors: BTreeMap<String, Written>,
}

/// A tensor of the checkpoint.
struct Written {
    tensor: Tensor,
    /// The parts that are all of it. Several must agree.
    parts: Vec<(View, Address, Tensor)>,
}

impl Writer<'_> {
    fn add(&mut self, entry: &Entry, address: Address, part: &Tensor) -> Result<()> {
        if !entry.is_per_head() {
            return self.add_tensor(entry.tensor_name(address.location, 0), entry.view, address, part);
        }
        let heads = part.size().first().copied().unwrap_or(0);
        for head in 0..heads {
            let name = entry.tensor_name(address.location, head as usize);
            self.add_tensor(name, entry.view, address, &part.f_select(0, head)?)?;
        }
        Ok(())
    }

    fn add_tensor(&mut self, name: String, view: View, address: Address, part: &Tensor) -> Result<()> {
        let config = self.config;
        let whole = view.write(part, config, address.location)?;
        let written = match self.tensors.entry(name) {
            Vacant(vacant) => {
                let tensor = match &whole {
                    Some(whole) => whole.shallow_clone(),
                    None => {
                        let shape = view.checkpoint_shape(&part.size(), config, address.location);
                        Tensor::f_zeros(shape, (part.f_kind()?, part.device()))?
                    }
                };
                self.names.push(vacant.key().clone());
                vacant.insert(Written { tensor, parts: Vec::new() })
            }
            Occupied(occupied) => occupied.into_mut(),
        };
        match whole {
            Some(whole) => {
                // Exact numbers are better than computed ones.
                if !view.computes() && written.parts.iter().all(|(view, ..)| view.computes()) {
                    written.tensor = whole;
                }
                written.parts.push((view, address, part.shallow_clone()));
            }
            None => {
                let mut region = view.region(&written.tensor, config, address.location)?;
                region.f_copy_(&part.f_reshape(region.size())?)?;
            }
        }
        Ok(())
    }

    /// Checks that the parts which share a tensor agree on it.
    fn finish(mut self) -> Result<Vec<(String, Tensor)>> {
        let mut all = Vec::with_capacity(self.names.len());
        for name in std::mem::take(&mut self.names) {
            let Some(Written { tensor, parts }) = self.tensors.remove(&name) else { continue };
            for (index, (view, address, part)) in parts.iter().enumerate() {
                let Some((_, other, _)) = parts.get(usize::from(index == 0)) else { break };
                if !agree(*view, &view.read(&tensor, self.config, address.location, part.f_kind()?)?, part)? {
                    let why = format!("the format keeps it as one tensor with `{other}`, and here the two differ");
                    return Err(self.error(*address, &why));
                }
            }
            all.push((name, tensor));
        }
        Ok(all)
    }

    fn error(&self, address: Address, why: &str) -> Error {
        CheckpointError::NotRepresentable { format: self.format.into(), name: address.to_string(), why: why.into() }
            .into()
    }
}
