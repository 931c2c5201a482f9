//! What a run does where a dictionary is spliced into it.

use tch::{Kind, Tensor};

use super::entry::Entry;
use super::tap::{Flow, Tap};
use crate::hook::{HookPoint, Place, Site};
use crate::sae::{Dictionary, SparseFeatures, Splice};
use crate::{Error, Result};

/// The activations of a dictionary's features.
enum Acts {
    Dense(Tensor),
    Sparse(SparseFeatures),
}

/// The activations of a cross-layer transcoder's features, for the layers after theirs.
pub(super) struct CrossLayer {
    nth: usize,
    acts: Acts,
    /// What they were before hooks changed them, where hooks may.
    clean: Option<Acts>,
}

/// What a run remembers from a dictionary's input to its outputs.
#[derive(Default)]
pub(super) struct Spliced {
    /// Activations that dictionaries read, until these reconstruct others.
    readings: Vec<(HookPoint, Tensor)>,
    cross_layer: Vec<CrossLayer>,
}

impl Tap<'_, '_> {
    /// Remembers what dictionaries read at a point.
    pub(super) fn read(&mut self, point: HookPoint, tensor: &Tensor) {
        if self.plan.read.contains(point) {
            self.spliced.readings.push((point, tensor.shallow_clone()));
        }
    }

    /// What the dictionary of a point puts in place of its activation.
    pub(super) fn splice(&mut self, point: HookPoint, original: Tensor) -> Flow<Tensor> {
        let plan = self.plan;
        let Some((nth, splice)) = plan.splices.at(point) else { return Ok(original) };
        let dictionary = &splice.dictionary;
        let at = |site| HookPoint::of_dictionary(point, site);
        let sites =
            [Site::SaeInput, Site::SaeActsPre, Site::SaeActsPost, Site::SaeRecons, Site::SaeError, Site::SaeOutput];
        let is_cross_layer = plan.splices.iter().any(|splice| splice.outputs.len() > 1);
        let x = match splice.hook_in == point {
            true => original.shallow_clone(),
            false => self.take_reading(splice.hook_in, nth)?,
        };
        let records = original.requires_grad() || x.requires_grad();
        let is_live = sites.into_iter().any(|site| plan.live.contains(at(site)));
        if splice.options.error_term && !is_live && !records && !is_cross_layer {
            return Ok(original); // with its error, the reconstruction is the activation
        }

        let flat = dictionary.flattened(&x)?; // [batch, pos, d_in]
        let input = self.at(at(Site::SaeInput), flat.shallow_clone())?;
        let (normal, undo) = dictionary.normalized(&input)?;
        let before = self.features(dictionary, point, &input, &normal)?;
        let changes = |site| plan.changed.contains(at(site));
        let (acts, clean) = match before {
            // A change of the input alone leads here: hooks on features need all of them.
            Acts::Sparse(acts) => {
                let clean = changes(Site::SaeInput).then(|| dictionary.encode_sparse(&flat)).transpose()?;
                (Acts::Sparse(acts), clean.map(Acts::Sparse))
            }
            Acts::Dense(before) => {
                let acts = self.at(at(Site::SaeActsPost), before.shallow_clone())?; // [batch, pos, feature]
                let clean = match changes(Site::SaeInput) || changes(Site::SaeActsPre) {
                    true => Some(dictionary.encode(&flat)?),
                    false => changes(Site::SaeActsPost).then_some(before),
                };
                (Acts::Dense(acts), clean.map(Acts::Dense))
            }
        };
        let recons = self.reconstructed(nth, splice, &acts, false)?;
        let recons = self.at(at(Site::SaeRecons), recons)?; // [batch, pos, d_out]
        let finished = |recons: Tensor, input: &Tensor, undo: &crate::sae::Undo| -> Result<Tensor> {
            let recons = undo.apply(recons)?;
            let recons = match dictionary.skip(input)? {
                Some(skip) => recons.f_add(&skip)?,
                None => recons,
            };
            dictionary.like_activation(recons, &original)
        };
        let mut output = finished(recons, &input, &undo)?;

        let error_point = at(Site::SaeError);
        if splice.options.error_term || plan.live.contains(error_point) {
            let earlier = self.spliced.cross_layer.iter().any(|layer| layer.clean.is_some());
            let changed = clean.is_some() || changes(Site::SaeRecons) || earlier;
            let without_hooks = match changed {
                false => output.shallow_clone(),
                true => {
                    let (_, undo) = dictionary.normalized(&flat)?;
                    let clean = clean.as_ref().unwrap_or(&acts);
                    finished(self.reconstructed(nth, splice, clean, true)?, &flat, &undo)?
                }
            };
            let error = original.f_sub(&without_hooks)?.f_detach()?;
            let error = self.at(error_point, error)?; // as the activation
            if splice.options.error_term {
                let exact = !changed && !changes(Site::SaeError) && !records && !output.requires_grad();
                output = if exact { original.shallow_clone() } else { output.f_add(&error)? };
            }
        }
        if splice.outputs.len() > 1 {
            self.spliced.cross_layer.push(CrossLayer { nth, acts, clean });
        }
        let output = self.at(at(Site::SaeOutput), output)?;
        let output = self.excluded(splice, point, output, &original)?;
        self.changed.insert(point);
        Ok(output)
    }

    /// The activations of the features, before hooks on them.
    ///
    /// Where only the cache looks at them, it gets sparse rows, and what pre-activations are made of.
    fn features(&mut self, dictionary: &Dictionary, point: HookPoint, input: &Tensor, normal: &Tensor) -> Flow<Acts> {
        let [pre, post] = [Site::SaeActsPre, Site::SaeActsPost].map(|site| HookPoint::of_dictionary(point, site));
        if self.is_only_kept(pre) && !normal.requires_grad() {
            self.keep_late(pre, input, |input| Ok(Entry::encoded(dictionary.clone(), input)))?;
            let is_kept = self.plan.live.contains(post);
            if self.is_only_kept(post) && (is_kept || dictionary.is_sparse()) {
                let active = dictionary.encode_sparse_normalized(normal)?;
                if is_kept {
                    self.keep_late(post, &active.numbers()?, |rows| Ok(Entry::active(active.at(&rows)?)))?;
                }
                return Ok(Acts::Sparse(active));
            }
            return Ok(Acts::Dense(dictionary.encode_normalized(normal)?));
        }
        if !self.plan.live.contains(pre) {
            return Ok(Acts::Dense(dictionary.encode_normalized(normal)?));
        }
        let mut product = dictionary.product(normal)?;
        product.pre = self.at(pre, product.pre)?; // [batch, pos, feature]
        Ok(Acts::Dense(dictionary.activate(product)?))
    }

    /// The reconstruction: what the features of the dictionary write, and those of earlier layers of a cross-layer transcoder.
    fn reconstructed(&self, nth: usize, splice: &Splice, acts: &Acts, clean: bool) -> Result<Tensor> {
        let mut sum = match acts {
            Acts::Dense(acts) => splice.dictionary.decode(acts)?,
            Acts::Sparse(acts) => splice.dictionary.decode_sparse(acts)?,
        };
        for layer in self.spliced.cross_layer.iter().filter(|layer| layer.nth != nth) {
            let Some(other) = self.plan.splices.iter().nth(layer.nth) else { continue };
            let Some(output) = other.outputs.iter().position(|hook| *hook == splice.hook_out()) else { continue };
            let acts = if clean { layer.clean.as_ref().unwrap_or(&layer.acts) } else { &layer.acts };
            let more = match acts {
                Acts::Dense(acts) => other.dictionary.decode_to(output, acts)?,
                Acts::Sparse(acts) => other.dictionary.decode_sparse_to(output, acts)?,
            };
            sum = sum.f_add(&more)?;
        }
        Ok(sum)
    }

    /// What a dictionary reads. It is dropped where no other dictionary will read it.
    fn take_reading(&mut self, hook: HookPoint, nth: usize) -> Result<Tensor> {
        let readings = &mut self.spliced.readings;
        let Some(place) = readings.iter().position(|(point, _)| *point == hook) else {
            return Err(Error::Internal("a dictionary's input that did not fire"));
        };
        let later = self.plan.splices.iter().enumerate();
        let is_needed = later.filter(|(other, splice)| *other != nth && splice.hook_in == hook).count() > 0;
        match is_needed {
            true => Ok(readings[place].1.shallow_clone()),
            false => Ok(readings.swap_remove(place).1),
        }
    }

    /// The output, but the activation itself at the tokens that are left out.
    fn excluded(&self, splice: &Splice, point: HookPoint, output: Tensor, original: &Tensor) -> Result<Tensor> {
        if splice.options.excluded.is_empty() {
            return Ok(output);
        }
        let excluded = Tensor::f_from_slice(&splice.options.excluded)?.f_to_device(self.ids.device())?;
        let mut mask = Tensor::f_isin(&self.ids.f_to_kind(Kind::Int64)?, &excluded, false, false)?; // [batch, pos]
        if point.place() == Place::After {
            mask = self.positions.at_logits(&mask)?;
        }
        for _ in 2..original.dim() {
            mask = mask.f_unsqueeze(-1)?;
        }
        Ok(original.f_where_self(&mask, &output)?)
    }
}
