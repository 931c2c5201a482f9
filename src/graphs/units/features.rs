//! [`FeatureUnits`]: the active features of a layer's transcoder as units.

use tch::{Device, Kind, Tensor};

use super::super::node::AttributionNode;
use super::{numbers, Readers, Reading, UnitTable, Units};
use crate::analysis::window::View;
use crate::hook::{self, HookName, HookPoint};
use crate::model::Transformer;
use crate::sae::{Dictionary, DictionarySet, FeatureActivation, InputNormalization};
use crate::tensor::precision::at_least_float;
use crate::tensor::scalar::Scalar;
use crate::{Error, Result};

/// The active features of a layer's transcoder, and what they leave of the MLP's output.
pub(in crate::graphs) struct FeatureUnits {
    table: UnitTable,
    layer: usize,
    dictionary: Dictionary,
    reading: Reading,
    before_norm: bool,
    /// The features of each position: `[feature]`.
    features: Vec<Tensor>,
    /// What multiplies the rows of the encoder: `[feature]`, in a gated dictionary.
    scale: Option<Tensor>,
    skip: Option<Tensor>,
    options: (Kind, Device),
    constant: Tensor,
    errors: Tensor,
}

/// Where a layer's transcoder reads and writes.
pub(in crate::graphs) struct Places {
    reading: Reading,
    /// The activation that it encodes.
    pub(in crate::graphs) read: HookPoint,
    before_norm: bool,
    pub(in crate::graphs) written: HookPoint,
}

/// The transcoder of each layer that has one in a set, with where it reads and writes.
pub(in crate::graphs) fn places_of_set<'d>(
    model: &Transformer,
    set: &'d DictionarySet,
) -> Result<Vec<Option<(&'d Dictionary, Places)>>> {
    let with_places = |(layer, dictionary): (usize, Option<&'d Dictionary>)| match dictionary {
        Some(dictionary) => Ok(Some((dictionary, Places::of(model, layer, dictionary)?))),
        None => Ok(None),
    };
    by_layer(model, set)?.into_iter().enumerate().map(with_places).collect()
}

impl Places {
    fn of(model: &Transformer, layer: usize, dictionary: &Dictionary) -> Result<Self> {
        let refused = |what: String| Error::Dictionary { name: dictionary.hook_out().to_string(), what };
        // All with their stack.
        let resolved = |point: HookPoint| point.resolve(model.config());
        let (hook_in, hook_out) = (resolved(dictionary.hook_in())?, resolved(dictionary.hook_out())?);
        let stream = resolved(super::super::frozen::stream_of_mlp(model.config(), layer))?;
        let norm = super::super::frozen::norm_before_mlp(model, layer)?;
        let (reading, read) = if hook_in == stream
            || (hook_in == resolved(hook::mlp_in(layer))? && stream != resolved(hook::mlp_hook_in(layer))?)
        {
            (Reading::Stream, stream)
        } else if hook_in == resolved(hook::mlp_hook_in(layer))? {
            (Reading::Normed, hook_in)
        } else if norm.is_some() && hook_in == resolved(hook::ln2_normalized(layer))? {
            (Reading::Quotient, hook_in)
        } else {
            return Err(refused(format!(
                "it reads `{hook_in}`: a graph needs a transcoder that reads what the MLP of layer {layer} reads (`{stream}`, `{}` or `{}`)",
                hook::ln2_normalized(layer),
                hook::mlp_hook_in(layer)
            )));
        };
        let before_norm = hook_out == resolved(hook::mlp_hook_out(layer))?;
        if !before_norm && hook_out != resolved(hook::mlp_out(layer))? {
            return Err(refused("a graph needs a transcoder that writes what an MLP writes".into()));
        }
        let config = dictionary.config();
        if config.normalization != InputNormalization::None {
            return Err(refused(
                "its input is normalised, which is not linear: a graph needs a transcoder without that".into(),
            ));
        }
        let d_model = model.config().d_model;
        if dictionary.d_in() != d_model || dictionary.d_out() != d_model {
            let (d_in, d_out) = (dictionary.d_in(), dictionary.d_out());
            return Err(refused(format!(
                "it reads {d_in} numbers and writes {d_out}, but the model's stream has {d_model}"
            )));
        }
        if dictionary.device() != model.device() {
            return Err(refused(format!("it is on {:?}, the model on {:?}", dictionary.device(), model.device())));
        }
        Ok(Places { reading, read, before_norm, written: hook_out })
    }
}

/// The transcoder of each layer that has one.
fn by_layer<'d>(model: &Transformer, set: &'d DictionarySet) -> Result<Vec<Option<&'d Dictionary>>> {
    let n_layers = model.config().n_layers;
    let mut layers: Vec<Option<&Dictionary>> = vec![None; n_layers];
    for dictionary in set.dictionaries() {
        let refused = |what: String| Error::Dictionary { name: dictionary.hook_out().to_string(), what };
        let layer = dictionary.hook_out().layer().filter(|layer| *layer < n_layers);
        let layer =
            layer.ok_or_else(|| refused(format!("the model has {n_layers} layers, and this is in none of them")))?;
        if model.mlp_or_experts(layer)?.is_none() {
            return Err(refused(format!("layer {layer} has no MLP that it could stand for")));
        }
        if layers[layer].replace(dictionary).is_some() {
            return Err(refused(format!("layer {layer} has two transcoders")));
        }
    }
    for dictionary in layers.iter().flatten() {
        for output in dictionary.outputs() {
            if output.layer().is_none_or(|layer| layers.get(layer).is_none_or(Option::is_none)) {
                let what = format!("it writes to `{output}`, where no transcoder of the set is");
                return Err(Error::Dictionary { name: dictionary.hook_out().to_string(), what });
            }
        }
    }
    Ok(layers)
}

impl FeatureUnits {
    /// The points of a run that those of a set are made of.
    pub(in crate::graphs) fn points(model: &Transformer, set: &DictionarySet) -> Result<Vec<HookPoint>> {
        let places = places_of_set(model, set)?;
        Ok(places.iter().flatten().flat_map(|(_, places)| [places.read, places.written]).collect())
    }

    /// The features of each layer with a transcoder in a run of one prompt, from position `first` on.
    pub(in crate::graphs) fn of_run(
        model: &Transformer,
        set: &DictionarySet,
        view: &View,
        first: usize,
    ) -> Result<Vec<Option<Self>>> {
        let layers = by_layer(model, set)?;
        let mut units: Vec<Option<FeatureUnits>> = Vec::with_capacity(layers.len());
        for (layer, dictionary) in layers.iter().enumerate() {
            units.push(match dictionary {
                Some(dictionary) => Some(FeatureUnits::active(model, layer, dictionary, view, first)?),
                None => None,
            });
        }
        for layer in 0..units.len() {
            let Some(of_layer) = &units[layer] else { continue };
            let places = Places::of(model, layer, &of_layer.dictionary)?;
            let (read, written) = (view.get(places.read)?, view.get(places.written)?); // [1, pos, d_model]
            let linear = match &of_layer.skip {
                Some(skip) => read.f_linear(skip, None::<&Tensor>)?,
                None => written.f_zeros_like()?,
            };
            let rest = written.f_sub(&linear)?;
            let mut features = written.f_zeros_like()?;
            for source in units.iter().flatten().filter(|source| source.writes_to(layer)) {
                features = features.f_add(&source.written(layer)?)?;
            }
            let n_pos = rest.size()[1];
            let first = (first as i64).min(n_pos);
            let (before, after) = (rest.f_narrow(1, 0, first)?, rest.f_narrow(1, first, n_pos - first)?);
            let bias = of_layer.dictionary.b_dec().f_to_kind(rest.f_kind()?)?.f_expand_as(&after)?;
            let errors = after.f_sub(&features.f_narrow(1, first, n_pos - first)?)?.f_sub(&bias)?;
            let constant = Tensor::f_cat(&[&before, &bias], 1)?;
            let errors = Tensor::f_cat(&[&before.f_zeros_like()?, &errors], 1)?;
            if let Some(of_layer) = &mut units[layer] {
                (of_layer.constant, of_layer.errors) = (constant, errors);
            }
        }
        Ok(units)
    }

    /// The active features of one layer.
    fn active(model: &Transformer, layer: usize, dictionary: &Dictionary, view: &View, first: usize) -> Result<Self> {
        let places = Places::of(model, layer, dictionary)?;
        let read = view.get(places.read)?.f_squeeze_dim(0)?; // [pos, d_model]
        let kind = at_least_float(read.f_kind()?);
        let options = (kind, read.device());
        let acts = dictionary.encode_sparse(&read.f_to_kind(dictionary.kind())?)?;
        let offsets = Vec::<i64>::try_from(acts.offsets().f_to_device(Device::Cpu)?)?;
        let all = Vec::<i64>::try_from(acts.features().f_to_device(Device::Cpu)?)?;
        let values = numbers(acts.values())?;
        let scale = match dictionary.gate() {
            Some([_, r_mag]) if dictionary.config().activation == FeatureActivation::Gated => {
                Some(r_mag.f_exp()?.f_to_kind(kind)?)
            }
            _ => None,
        };
        let bias = match &scale {
            Some(scale) => dictionary
                .b_enc()
                .f_to_kind(kind)?
                .f_add(&dictionary.pre_activation_bias().f_to_kind(kind)?.f_mul(scale)?)?,
            None => dictionary.pre_activation_bias().f_to_kind(kind)?,
        };
        let mut units = FeatureUnits {
            table: UnitTable::default(),
            layer,
            dictionary: dictionary.clone(),
            reading: places.reading,
            before_norm: places.before_norm,
            features: Vec::new(),
            scale,
            skip: dictionary.w_skip().map(|skip| skip.f_to_kind(kind)).transpose()?,
            options,
            constant: Tensor::new(),
            errors: Tensor::new(),
        };
        let table = &mut units.table;
        let mut kept = Vec::new();
        let mut of_positions = Vec::new();
        for (position, bounds) in offsets.windows(2).enumerate() {
            table.starts.push(table.ids.len());
            let range = if position < first { 0..0 } else { bounds[0] as usize..bounds[1] as usize };
            let mut chosen: Vec<(i64, f32)> = all[range.clone()]
                .iter()
                .copied()
                .zip(values[range].iter().copied())
                .filter(|(_, value)| *value != 0.0)
                .collect();
            chosen.sort_unstable_by_key(|(feature, _)| *feature);
            table.ids.extend(chosen.iter().map(|(feature, _)| *feature as u32));
            kept.extend(chosen.iter().map(|(_, value)| *value));
            let chosen: Vec<i64> = chosen.into_iter().map(|(feature, _)| feature).collect();
            of_positions.push(Tensor::f_from_slice(&chosen)?.f_to_device(options.1)?);
        }
        table.starts.push(table.ids.len());
        table.values = Tensor::f_from_slice(&kept)?.f_to_device(options.1)?.f_to_kind(kind)?;
        table.activations = kept;
        units.features = of_positions;
        let mut pre = Vec::with_capacity(units.table.len());
        let mut biases = Vec::with_capacity(units.table.len());
        for (position, features) in units.features.iter().enumerate() {
            let rows = units.encoder_rows(features)?; // [feature, d_model]
            let bias = bias.f_index_select(0, features)?;
            pre.extend(numbers(&rows.f_matmul(&read.f_get(position as i64)?.f_to_kind(kind)?)?.f_add(&bias)?)?);
            biases.extend(numbers(&bias)?);
        }
        (units.table.pre_activations, units.table.biases) = (pre, biases);
        Ok(units)
    }

    /// What features read: `[feature]` to `[feature, d_model]`.
    fn encoder_rows(&self, features: &Tensor) -> Result<Tensor> {
        let rows = self.dictionary.w_enc().f_index_select(0, features)?.f_to_kind(self.options.0)?;
        Ok(match &self.scale {
            Some(scale) => rows.f_mul(&scale.f_index_select(0, features)?.f_unsqueeze(-1)?)?,
            None => rows,
        })
    }

    /// What features write to a layer: `[feature]` to `[feature, d_model]`.
    fn decoder_rows(&self, layer: usize, features: &Tensor) -> Result<Tensor> {
        let output = self.dictionary.outputs().position(|output| output.layer() == Some(layer));
        let output = output.ok_or(Error::Internal("a transcoder does not write to a layer that it was asked for"))?;
        let rows = self.dictionary.decoder(output)?.rows(features, self.options)?;
        match self.dictionary.config().rescale_by_decoder_norm {
            true => Ok(rows.f_div(&rows.norm_over(&[-1], true)?)?),
            false => Ok(rows),
        }
    }

    /// What all features write to a layer together: `[1, pos, d_model]`.
    fn written(&self, layer: usize) -> Result<Tensor> {
        let mut rows = Vec::with_capacity(self.features.len());
        for (position, features) in self.features.iter().enumerate() {
            let (start, end) = (self.table.starts[position], self.table.starts[position + 1]);
            let values = self.table.values.f_narrow(0, start as i64, (end - start) as i64)?;
            rows.push(values.f_unsqueeze(0)?.f_matmul(&self.decoder_rows(layer, features)?)?);
        }
        Ok(Tensor::f_cat(&rows, 0)?.f_unsqueeze(0)?)
    }
}

impl Units for FeatureUnits {
    fn table(&self) -> &UnitTable {
        &self.table
    }

    fn node(&self, unit: usize, pos: usize) -> AttributionNode {
        AttributionNode::Feature { layer: self.layer, pos, feature: self.table.ids[unit] as usize }
    }

    fn writes_to(&self, layer: usize) -> bool {
        self.dictionary.outputs().any(|output| output.layer() == Some(layer))
    }

    fn writes_before_norm(&self) -> bool {
        self.before_norm
    }

    fn effects(&self, layer: usize, position: usize, gradients: &Tensor) -> Result<Tensor> {
        Ok(gradients.f_matmul(&self.decoder_rows(layer, &self.features[position])?.f_tr()?)?)
    }

    fn readers(&self, units: &[usize]) -> Result<Readers> {
        let ids: Vec<i64> = units.iter().map(|unit| i64::from(self.table.ids[*unit])).collect();
        let ids = Tensor::f_from_slice(&ids)?.f_to_device(self.options.1)?;
        Ok(Readers { vectors: self.encoder_rows(&ids)?, reading: self.reading })
    }

    fn constant(&self) -> &Tensor {
        &self.constant
    }

    fn errors(&self) -> Option<&Tensor> {
        Some(&self.errors)
    }

    fn skip(&self) -> Option<(&Tensor, Reading)> {
        self.skip.as_ref().map(|skip| (skip, self.reading))
    }
}
