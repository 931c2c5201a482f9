//! [`FeatureExamples`]: what a feature or neuron is, from the texts in which it is strongest.

use tch::{Device, Kind, Tensor};

use super::bar_chart::BarChart;
use super::color_scale::ColorScale;
use super::figure::{Draw, Figure};
use super::html::Page;
use super::results::floats;
use super::table::Table;
use super::token_strip::TokenStrip;
use crate::hook::{Extent, HookName, HookPoint, Site};
use crate::{Dictionary, Error, HookedTransformer, Result, ReturnType, RunOptions};

/// So many tokens before and behind the strongest one are in a row of the table.
const BEFORE: usize = 6;
const BEHIND: usize = 3;
/// How many tokens are listed that a feature raises, and that it lowers.
const LISTED: usize = 10;
/// The bars of the histogram.
const BARS: usize = 10;

/// What a feature of a dictionary, or a neuron, does: the texts in which it is strongest, how often it is active, and which tokens' logits
/// it raises and lowers.
///
/// As a figure it is a table of the strongest tokens with what stands around them, coloured by activation. Its [page](Draw::page) has the
/// whole texts, a histogram and the logits as well.
///
/// ```
/// use tch_lens::sae::{DictionarySet, SaeOptions};
/// use tch_lens::view::{Draw, FeatureExamples};
/// use tch_lens::{hook, HookedTransformer};
/// let transcoders = DictionarySet::toy()?;
/// let model = HookedTransformer::toy()?.with_saes(transcoders.dictionaries().to_vec(), SaeOptions::new())?;
/// let texts = [
///     "When Mary and John went to the shop, John gave a bag to",
///     "When Peter and Anna went to the park, Anna gave a ball to",
///     "The capital of France is Paris",
/// ];
/// let feature = FeatureExamples::of(&model, hook::sae_acts_post(hook::mlp_out(3)), 256, texts, 2)?;
/// assert_eq!(feature.strongest()[0].token(), " Anna"); // the name of the giver
/// println!("{}", feature.figure()?);
/// let html = feature.page()?.to_html();
/// # assert!(html.contains("L3F256"));
/// # Ok::<(), tch_lens::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct FeatureExamples {
    name: String,
    /// How many examples are kept.
    keep: usize,
    /// The strongest first.
    examples: Vec<FeatureExample>,
    n_texts: usize,
    n_tokens: usize,
    /// All that are not 0.
    active: Vec<f32>,
    raised: Vec<(String, f32)>,
    lowered: Vec<(String, f32)>,
}

/// A text, with the activation at each of its tokens.
#[derive(Clone, Debug, PartialEq)]
pub struct FeatureExample {
    tokens: Vec<String>,
    activations: Vec<f32>,
    strongest: usize,
}

impl FeatureExample {
    /// The tokens of the text.
    pub fn tokens(&self) -> &[String] {
        &self.tokens
    }

    /// The activation at each token; NaN where it does not count.
    pub fn activations(&self) -> &[f32] {
        &self.activations
    }

    /// The token at which the activation is largest, the first of several.
    pub fn token(&self) -> &str {
        &self.tokens[self.strongest]
    }

    /// The place of this token.
    pub fn position(&self) -> usize {
        self.strongest
    }

    /// The largest activation.
    pub fn activation(&self) -> f32 {
        self.activations[self.strongest]
    }
}

impl FeatureExamples {
    /// Examples of a feature of this name, of which the `keep` strongest are kept; none yet.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`] where none are to be kept.
    pub fn new(name: impl Into<String>, keep: usize) -> Result<Self> {
        if keep == 0 {
            return Err(Error::option_value("keep", 0, "it must be at least 1"));
        }
        Ok(FeatureExamples {
            name: name.into(),
            keep,
            examples: Vec::new(),
            n_texts: 0,
            n_tokens: 0,
            active: Vec::new(),
            raised: Vec::new(),
            lowered: Vec::new(),
        })
    }

    /// Examples of entry `unit` of a point, a feature of an attached dictionary or a neuron, in some texts, of which the `keep` strongest are
    /// kept. Each text is run by itself. A BOS token does not count.
    ///
    /// What a feature writes is its direction in the stream, read by the unembedding: the direct path, without what later layers make of it.
    /// It is left out for points whose entries write no such direction.
    ///
    /// # Errors
    ///
    /// [`Error::SliceOutOfRange`] for an entry that the point does not have; [`Error::Setting`] for a point whose last axis has neither
    /// neurons nor features; those of a run.
    pub fn of(
        model: &HookedTransformer,
        point: impl HookName,
        unit: usize,
        texts: impl IntoIterator<Item = impl Into<String>>,
        keep: usize,
    ) -> Result<Self> {
        let point = point.resolve(model.config())?;
        let len = point.shape(model.config(), 1, 1).last().copied().unwrap_or(0);
        let Some(letter) = letter(point, model) else {
            let why = format!("`point` cannot be used: {point} has neither neurons nor features");
            return Err(Error::setting("point", why));
        };
        if unit as i64 >= len {
            return Err(Error::SliceOutOfRange { slice: format!("index {unit}"), axis: "feature", len });
        }
        let layer = point.layer().map_or(String::new(), |layer| format!("L{layer}"));
        let mut examples = FeatureExamples::new(format!("{layer}{letter}{unit}"), keep)?;
        let bos = model.tokenizer()?.bos_id();
        for text in texts {
            let run = RunOptions::new().cache(point).return_type(ReturnType::None);
            let cache = model.run(text.into(), run)?.cache;
            let ids = cache.tokens().rows()?.remove(0);
            let mut activations = floats(&cache.get(point)?.f_select(0, 0)?.f_select(-1, unit as i64)?)?; // [pos]
            if ids.first().copied() == bos
                && let Some(first) = activations.first_mut()
            {
                *first = f32::NAN;
            }
            let tokens = ids.iter().map(|id| model.to_single_str_token(*id)).collect::<Result<Vec<_>>>()?;
            examples.add(tokens, activations)?;
        }
        if let Some(direction) = written(model, point, unit)? {
            examples.write(model, &direction)?;
        }
        Ok(examples)
    }

    /// Another text, with the activation at each token; NaN where it does not count.
    ///
    /// # Errors
    ///
    /// [`Error::Shape`] for another number of activations.
    pub fn add(
        &mut self,
        tokens: impl IntoIterator<Item = impl Into<String>>,
        activations: impl Into<Vec<f32>>,
    ) -> Result<()> {
        let (tokens, activations): (Vec<String>, Vec<f32>) =
            (tokens.into_iter().map(Into::into).collect(), activations.into());
        super::heat_map::refuse_length("the activations of a text", activations.len(), tokens.len())?;
        let counted = || activations.iter().copied().enumerate().filter(|(_, value)| !value.is_nan());
        self.n_texts += 1;
        self.n_tokens += counted().count();
        self.active.extend(counted().map(|(_, value)| value).filter(|value| *value != 0.0));
        // The first of those that are largest.
        let largest = counted().fold(None, |best: Option<(usize, f32)>, (place, value)| match best {
            Some((_, most)) if most >= value => best,
            _ => Some((place, value)),
        });
        let Some((strongest, value)) = largest.filter(|(_, value)| *value != 0.0) else { return Ok(()) };
        let place = self.examples.partition_point(|example| example.activation() >= value);
        self.examples.insert(place, FeatureExample { tokens, activations, strongest });
        self.examples.truncate(self.keep);
        Ok(())
    }

    /// Which tokens' logits a direction of the stream, `[d_model]`, raises and lowers most, over the mean of all tokens.
    ///
    /// # Errors
    ///
    /// [`Error::Shape`] for a direction of another width; [`Error::NoWeights`].
    pub fn write(&mut self, model: &HookedTransformer, direction: &Tensor) -> Result<()> {
        let d_model = model.config().d_model as i64;
        if direction.size() != [d_model] {
            let (found, expected) = (direction.size(), format!("[{d_model}]"));
            return Err(Error::Shape { what: "the direction that a feature writes".into(), found, expected });
        }
        let w_u = model.w_u()?;
        let logits = direction.f_to_kind(w_u.f_kind()?)?.f_unsqueeze(0)?.f_matmul(&w_u)?.f_squeeze()?; // [d_vocab_out]
        let logits = logits.f_to_kind(Kind::Float)?;
        let logits = logits.f_sub(&logits.f_mean(Kind::Float)?)?;
        let k = (LISTED as i64).min(logits.size()[0]);
        let listed = |largest: bool| -> Result<Vec<(String, f32)>> {
            let (values, ids) = logits.f_topk(k, -1, largest, true)?;
            let ids = Vec::<i64>::try_from(ids.f_to_device(Device::Cpu)?)?;
            ids.iter().zip(floats(&values)?).map(|(id, value)| Ok((model.to_single_str_token(*id)?, value))).collect()
        };
        (self.raised, self.lowered) = (listed(true)?, listed(false)?);
        Ok(())
    }

    /// The texts in which the activation is largest, the strongest first. Texts without any are left out.
    pub fn strongest(&self) -> &[FeatureExample] {
        &self.examples
    }

    /// The share of tokens at which the activation is not 0.
    pub fn density(&self) -> f64 {
        self.active.len() as f64 / self.n_tokens.max(1) as f64
    }

    /// The tokens whose logits are raised most, and by how much over the mean of all tokens.
    pub fn raised(&self) -> &[(String, f32)] {
        &self.raised
    }

    /// The tokens whose logits are lowered most.
    pub fn lowered(&self) -> &[(String, f32)] {
        &self.lowered
    }

    /// Colours that all examples share.
    fn scale(&self) -> ColorScale {
        ColorScale::of(self.examples.iter().flat_map(|example| example.activations.iter().copied()))
    }

    /// How many activations lie in each of the ranges between the smallest and the largest.
    fn histogram(&self) -> Result<BarChart> {
        let (low, high) = self.active.iter().fold((0.0f32, 0.0f32), |(low, high), x| (low.min(*x), high.max(*x)));
        let width = (high - low) / BARS as f32;
        let mut counts = [0usize; BARS];
        for value in &self.active {
            counts[(((value - low) / width) as usize).min(BARS - 1)] += 1;
        }
        let labels = (0..BARS).map(|bar| {
            let from = low + bar as f32 * width;
            format!("{from:.2} to {:.2}", from + width)
        });
        BarChart::new("tokens", labels, counts.iter().map(|count| *count as f32).collect())
    }
}

/// How an entry of a point is named: a neuron or a feature.
fn letter(point: HookPoint, model: &HookedTransformer) -> Option<char> {
    match point.extents(model.config()).last() {
        Some(Extent::DMlp) => Some('N'),
        Some(Extent::Feature) => Some('F'),
        _ => None,
    }
}

/// The direction that an entry of a point writes to the stream, `[d_model]`.
fn written(model: &HookedTransformer, point: HookPoint, unit: usize) -> Result<Option<Tensor>> {
    let (config, unit) = (model.config(), unit as i64);
    if let Some(hook) = point.spliced_at() {
        let in_stream = [Site::ResidPre, Site::ResidMid, Site::ResidPost, Site::AttnOut, Site::MlpOut];
        let is_at = |sae: &Dictionary| sae.hook_out().resolve(config).is_ok_and(|found| found == hook);
        return match model.saes().into_iter().find(is_at) {
            Some(sae) if in_stream.contains(&hook.site()) => {
                Ok(Some(sae.decoder_rows(0, &Tensor::f_from_slice(&[unit])?)?.f_squeeze_dim(0)?))
            }
            _ => Ok(None),
        };
    }
    match (point.site(), point.layer()) {
        (Site::Post, Some(layer)) => Ok(Some(model.w_out(layer)?.f_get(unit)?)),
        _ => Ok(None),
    }
}

impl Draw for FeatureExamples {
    fn figure(&self) -> Result<Figure> {
        let offsets: Vec<i64> = (-(BEFORE as i64)..=BEHIND as i64).collect();
        let columns = offsets.iter().map(|offset| match offset {
            0 => "strongest".to_string(),
            offset => format!("{offset:+}"),
        });
        let (mut cells, mut values) = (Vec::new(), Vec::new());
        for example in &self.examples {
            for offset in &offsets {
                let place = usize::try_from(example.strongest as i64 + offset).ok();
                let cell =
                    place.and_then(|place| Some((example.tokens.get(place)?.clone(), example.activations[place])));
                let (token, value) = cell.unwrap_or((String::new(), f32::NAN));
                cells.push(token);
                values.push(value);
            }
        }
        let rows = self.examples.iter().map(|example| format!("{:.3}", example.activation()));
        let table = Table::new("largest activation", rows, columns, cells)?.values("activation", values)?;
        let table = table.color_scale(self.scale())?;
        let caption = format!(
            "The {} strongest of {} texts, around the strongest token of each. Active at {:.2} % of {} tokens.",
            self.examples.len(),
            self.n_texts,
            100.0 * self.density(),
            self.n_tokens
        );
        Ok(Figure::new(format!("Where {} is active", self.name), table).with_caption(caption))
    }

    /// The table, the logits, a histogram, and the whole texts.
    fn page(&self) -> Result<Page> {
        let mut page = Page::new(&self.name).section("Where it is active", self)?;
        if !self.raised.is_empty() {
            for (heading, list) in [("Logits that it raises", &self.raised), ("Logits that it lowers", &self.lowered)] {
                let (labels, values): (Vec<String>, Vec<f32>) = list.iter().cloned().unzip();
                let figure =
                    Figure::new(heading, BarChart::new("logit over the mean, for an activation of 1", labels, values)?);
                page = page.section(heading, &figure)?;
            }
        }
        if !self.active.is_empty() {
            page = page.section("How strong it is", &Figure::new("How strong it is", self.histogram()?))?;
        }
        if !self.examples.is_empty() {
            page = page.heading("The texts");
        }
        for example in &self.examples {
            let strip = TokenStrip::new(example.tokens.clone(), "activation", example.activations.clone())?;
            let strip = strip.color_scale(self.scale())?;
            page = page.figure(Figure::new(format!("{:.3} at {:?}", example.activation(), example.token()), strip))?;
        }
        Ok(page)
    }
}
