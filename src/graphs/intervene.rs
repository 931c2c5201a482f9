//! Interventions on features: what the model does where features have other activations.

use std::cell::RefCell;
use std::ops::Range;

use tch::Tensor;

use super::frozen::FrozenModel;
use super::units::{add_points, places_of_set, Places};
use crate::cache::ActivationCache;
use crate::hook::{HookPoint, Site};
use crate::run::Hooks;
use crate::sae::{Dictionary, DictionarySet};
use crate::text::input::{Input, Tokens};
use crate::{Error, HookedTransformer, Patch, Result, RunOptions};

/// The activation that a feature gets at a position.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FeatureIntervention {
    /// The layer that the feature reads.
    pub layer: usize,
    /// The position.
    pub pos: usize,
    /// Its number in the transcoder.
    pub feature: usize,
    /// The activation that it gets.
    pub value: f64,
}

/// What stays as it was without the interventions.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Freeze {
    /// Nothing: circuit-tracer's `freeze_attention=False`.
    Nothing,
    /// Attention patterns, gates and routers of heads. MLPs compute again: circuit-tracer's iterative patching.
    Attention,
    /// Attention, and what the MLPs of these layers add but for the interventions (`constrained_layers`). Interventions act in these layers
    /// alone. All layers are [`Freeze::All`].
    Layers(Range<usize>),
    /// Attention, all MLPs and the scales of all norms: direct effects alone. What each target reads changes by the edges of the
    /// attribution graph.
    All,
}

/// What a model does with interventions on features.
#[derive(Debug)]
pub struct FeatureInterventionOutput {
    /// `[pos, d_vocab_out]`
    pub logits: Tensor,
    /// The pre-activations of each layer's features, `[pos, feature]`; `None` in a layer without a transcoder.
    pub pre_activations: Vec<Option<Tensor>>,
}

impl HookedTransformer {
    /// Runs the model on a prompt with some features at other activations: to what their layers' MLPs add, the change of the activation times
    /// what the feature writes is added. circuit-tracer's `feature_intervention`.
    ///
    /// A supernode is intervened on by several interventions at once. The pre-activations of [`FeatureInterventionOutput`] are those that
    /// features have at the end, and in an intervened layer what they have without the intervention.
    ///
    /// # Errors
    ///
    /// Those of [`HookedTransformer::run`]; [`Error::Dictionary`] for transcoders that do not fit the model; [`Error::WrongInput`] for a
    /// position or feature that does not exist, or the same one twice; [`Error::Shape`] for several prompts; [`Error::Unsupported`] with
    /// [`Freeze::All`] for attention with a norm that has no hook point: values from latents, and differential attention.
    pub fn feature_intervention(
        &self,
        input: impl Into<Input>,
        transcoders: &DictionarySet,
        interventions: &[FeatureIntervention],
        freeze: Freeze,
    ) -> Result<FeatureInterventionOutput> {
        let tokens = self.to_tokens(input)?;
        let places = places_of_set(self.transformer(), transcoders)?;
        self.check_interventions(&tokens, &places, interventions)?;
        // With all layers, circuit-tracer freezes the scales of norms, too.
        let freeze = match freeze {
            Freeze::Layers(layers) if layers == (0..self.config().n_layers) => Freeze::All,
            other => other,
        };
        let frozen_layers = match &freeze {
            Freeze::Nothing | Freeze::Attention => None,
            Freeze::Layers(layers) if layers.start < layers.end && layers.end <= self.config().n_layers => {
                Some(layers.clone())
            }
            Freeze::Layers(layers) => {
                let rule = format!("give a range within the model's {} layers", self.config().n_layers);
                return Err(Error::option_value("freeze", format!("{layers:?}"), rule));
            }
            Freeze::All => Some(0..self.config().n_layers),
        };
        let frozen = self.points_to_freeze(&freeze)?;
        let mut points = frozen.clone();
        for places in places.iter().flatten().map(|(_, places)| places) {
            add_points(&mut points, [places.read, places.written]);
        }
        let clean = self.run(&tokens, RunOptions::new().cache(points))?.cache;

        let mut hooks = Hooks::new();
        for point in frozen {
            hooks = hooks.patch(point, Patch::set(clean.get(point)?));
        }
        let deltas: RefCell<Vec<Option<Tensor>>> = RefCell::new((0..self.config().n_layers).map(|_| None).collect());
        let acts = Acts { interventions, places: &places, deltas: &deltas };
        let hooks = match frozen_layers {
            Some(layers) => {
                for layer in 0..places.len() {
                    acts.add(layer, |read| Ok(clean.get(read)?.shallow_clone()))?;
                }
                acts.constrained(hooks, &clean, layers)?
            }
            None => acts.iterative(hooks),
        };
        let reads: Vec<HookPoint> = places.iter().flatten().map(|(_, places)| places.read).collect();
        let output = self.run(&tokens, RunOptions::new().cache(reads).hooks(hooks))?;
        let pre_activations = places.iter().map(|of_layer| match of_layer {
            Some((dictionary, places)) => {
                let read = output.cache.get(places.read)?.f_squeeze_dim(0)?.f_to_kind(dictionary.kind())?;
                dictionary.pre_activations(&read).map(Some)
            }
            None => Ok(None),
        });
        Ok(FeatureInterventionOutput {
            logits: output.logits()?.f_squeeze_dim(0)?,
            pre_activations: pre_activations.collect::<Result<_>>()?,
        })
    }

    fn check_interventions(
        &self,
        tokens: &Tokens,
        places: &[Option<(&Dictionary, Places)>],
        interventions: &[FeatureIntervention],
    ) -> Result<()> {
        let size = tokens.ids.size();
        if size[0] != 1 {
            let what = "the tensor of an intervention's prompts".into();
            return Err(Error::Shape { what, found: size, expected: "one prompt, [1, pos]".into() });
        }
        for (i, FeatureIntervention { layer, pos, feature, value }) in interventions.iter().enumerate() {
            let refused =
                |why: String| Err(Error::wrong_input(format!("feature {feature} of layer {layer} at {pos}: {why}")));
            let Some((dictionary, _)) = places.get(*layer).and_then(Option::as_ref) else {
                return refused("the set has no transcoder of this layer".into());
            };
            if *feature >= dictionary.d_sae() || *pos >= size[1] as usize {
                return refused(format!("there are {} features and {} positions", dictionary.d_sae(), size[1]));
            }
            if !value.is_finite() {
                return refused(format!("an activation is a finite number, not {value}"));
            }
            let is_same =
                |other: &FeatureIntervention| (other.layer, other.pos, other.feature) == (*layer, *pos, *feature);
            if interventions[..i].iter().any(is_same) {
                return refused("it is intervened on twice".into());
            }
        }
        Ok(())
    }

    /// The points that keep their values.
    fn points_to_freeze(&self, freeze: &Freeze) -> Result<Vec<HookPoint>> {
        if *freeze == Freeze::Nothing {
            return Ok(Vec::new());
        }
        let model = self.transformer();
        let all = *freeze == Freeze::All;
        for layer in 0..self.config().n_layers {
            let attn = model.attention_layer(layer)?;
            if all && (attn.latent.is_some() || attn.differential.is_some()) {
                return Err(Error::unsupported(
                    "the norm within this model's attention has no hook point, so it cannot be frozen in a run: use `Freeze::Attention`",
                ));
            }
        }
        let of_attention = |site| {
            matches!(
                site,
                Site::Pattern
                    | Site::CrossPattern
                    | Site::AttnScores
                    | Site::HeadGate
                    | Site::HeadWeights
                    | Site::HeadIndices
            )
        };
        let of_norms = |site| {
            use Site::*;
            // At its gate, what a per-layer embedding adds is no function of the stream.
            matches!(site, Ln1Scale | Ln1PostScale | Ln2Scale | Ln2PostScale | VNormScale | ZNormScale | LnFinalScale)
                || matches!(site, CrossLnScale | CrossLnPostScale | PleOut)
        };
        let points = FrozenModel::points(model)?.into_iter();
        Ok(points.filter(|point| of_attention(point.site()) || all && of_norms(point.site())).collect())
    }
}

/// The interventions of a run, and what they add to each layer's output.
struct Acts<'a> {
    interventions: &'a [FeatureIntervention],
    places: &'a [Option<(&'a Dictionary, Places)>],
    /// What is added in each layer: `[1, pos, d_model]`.
    deltas: &'a RefCell<Vec<Option<Tensor>>>,
}

impl<'a> Acts<'a> {
    /// Adds what the interventions on the features of a layer change, with the activation that these read.
    fn add(&self, layer: usize, read: impl Fn(HookPoint) -> Result<Tensor>) -> Result<()> {
        let Some((dictionary, places)) = &self.places[layer] else { return Ok(()) };
        let of_layer: Vec<&FeatureIntervention> = self.interventions.iter().filter(|it| it.layer == layer).collect();
        if of_layer.is_empty() {
            return Ok(());
        }
        let read = read(places.read)?; // [1, pos, d_model]
        let acts = dictionary.encode(&read.f_to_kind(dictionary.kind())?)?; // [1, pos, feature]
        let change = acts.f_zeros_like()?;
        for FeatureIntervention { pos, feature, value, .. } in of_layer {
            let at = [0, *pos as i64, *feature as i64];
            let now = acts.f_double_value(&at)?;
            let mut entry = change.f_get(0)?.f_get(at[1])?.f_get(at[2])?;
            entry.f_copy_(&Tensor::f_from_slice(&[value - now])?.f_squeeze()?)?;
        }
        let mut deltas = self.deltas.borrow_mut();
        for (output, point) in dictionary.outputs().enumerate() {
            let Some(delta) = point.layer().and_then(|layer| deltas.get_mut(layer)) else { continue };
            let nothing = change.f_zeros_like()?;
            // Without the bias, which `decode_to` adds.
            let written = dictionary.decode_to(output, &change)?.f_sub(&dictionary.decode_to(output, &nothing)?)?;
            let written = written.f_to_kind(read.f_kind()?)?;
            *delta = Some(match delta.take() {
                Some(before) => before.f_add(&written)?,
                None => written,
            });
        }
        Ok(())
    }

    /// MLPs of these layers add what they added without the interventions, and the changes.
    fn constrained(&self, mut hooks: Hooks<'a>, clean: &'a ActivationCache, layers: Range<usize>) -> Result<Hooks<'a>> {
        for (layer, of_layer) in self.places.iter().enumerate().filter(|(layer, _)| layers.contains(layer)) {
            let Some((dictionary, places)) = of_layer else {
                return Err(Error::wrong_input(format!("layer {layer} has no transcoder: a frozen layer needs one")));
            };
            let was = clean.get(places.written)?;
            let frozen = match self.deltas.borrow_mut()[layer].take() {
                Some(delta) => was.f_add(&delta)?,
                None => was.shallow_clone(),
            };
            let Some(skip) = dictionary.skip(clean.get(places.read)?)? else {
                hooks = hooks.patch(places.written, Patch::set(&frozen));
                continue;
            };
            let without_skip = frozen.f_sub(&skip)?;
            let reads: &'a RefCell<Vec<Option<Tensor>>> = self.deltas;
            let dictionary: &'a Dictionary = dictionary;
            hooks = hooks
                .observe(places.read, move |read: &Tensor, _| -> Result<()> {
                    reads.borrow_mut()[layer] = dictionary.skip(read)?;
                    Ok(())
                })
                .replace(places.written, move |_: &Tensor, _| -> Result<Tensor> {
                    let skip = reads.borrow_mut()[layer].take();
                    Ok(without_skip.f_add(&skip.ok_or(Error::Internal("an MLP wrote before it read"))?)?)
                });
        }
        Ok(hooks)
    }

    /// MLPs compute, and the changes follow from what features read in the same run.
    fn iterative(self, mut hooks: Hooks<'a>) -> Hooks<'a> {
        let acts = std::rc::Rc::new(self);
        for (layer, of_layer) in acts.places.iter().enumerate() {
            let Some((_, places)) = of_layer else { continue };
            if acts.interventions.iter().any(|it| it.layer == layer) {
                let acts = acts.clone();
                hooks =
                    hooks.observe(places.read, move |read: &Tensor, _| acts.add(layer, |_| Ok(read.shallow_clone())));
            }
            let deltas = acts.deltas;
            hooks = hooks.replace(places.written, move |written: &Tensor, _| -> Result<Option<Tensor>> {
                match deltas.borrow_mut()[layer].take() {
                    Some(delta) => Ok(Some(written.f_add(&delta)?)),
                    None => Ok(None),
                }
            });
        }
        hooks
    }
}
