//! Names of hook points: TransformerLens' strings and short hand, parsed against a model.

use super::nearest::unknown;
use super::point::{HookPoint, Stack};
use super::presence::{presence, Presence};
use super::site::{Place, Site};
use crate::layer::Layer;
use crate::{Config, Error, Result};

/// Anything that names one hook point of a model.
///
/// - a typed point, whose layer may be negative: `hook::q(0)`, `hook::q(-1)`
/// - TransformerLens' name: `"blocks.0.attn.hook_q"`, `"hook_embed"`
/// - its short hand, with a layer that may be negative: `("q", 0)`, `("resid_post", -1)`,
///   `("scale", 2, "ln1")`, `"k6"`, `"pattern3"`, `"scale2ln1"`, `"embed"`
///
/// ```
/// use tch_lens::{hook::{self, HookName}, HookedTransformer};
/// let model = HookedTransformer::toy()?;
/// let config = model.config();
/// assert_eq!(("resid_post", -1).resolve(config)?, hook::resid_post(3));
/// assert_eq!(hook::resid_post(-1).resolve(config)?, hook::resid_post(3));
/// assert_eq!("k2".resolve(config)?, hook::k(2));
/// let error = "blocks.0.attn.hook_qq".resolve(config).unwrap_err();
/// assert_eq!(error.to_string(), "there is no hook point `blocks.0.attn.hook_qq`; the nearest is `blocks.0.attn.hook_q`");
/// # Ok::<(), tch_lens::Error>(())
/// ```
pub trait HookName {
    /// The hook point of a model of this shape, its layer counted from the start.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownHook`], with the nearest name; [`Error::HookNotInModel`]; [`Error::LayerOutOfRange`].
    fn resolve(&self, config: &Config) -> Result<HookPoint>;
}

impl HookName for HookPoint {
    fn resolve(&self, config: &Config) -> Result<HookPoint> {
        let point = match self.signed_layer() {
            Some(layer) => self.with_layer(layer.resolve(config.n_layers)?),
            None => *self,
        };
        match presence(point, config) {
            Presence::Absent(why) => Err(Error::HookNotInModel { name: point.to_string(), why: why.into() }),
            _ => Ok(point),
        }
    }
}

impl HookName for str {
    fn resolve(&self, config: &Config) -> Result<HookPoint> {
        whole(self).or_else(|| compact(self)).ok_or_else(|| unknown(self, config))?.resolve(config)
    }
}

impl HookName for String {
    fn resolve(&self, config: &Config) -> Result<HookPoint> {
        self.as_str().resolve(config)
    }
}

impl<L: Into<Layer> + Copy> HookName for (&str, L) {
    fn resolve(&self, config: &Config) -> Result<HookPoint> {
        let (short, layer) = (self.0, self.1.into());
        match site(short, None) {
            Some(site) => HookPoint::in_layer(layer, site).resolve(config),
            None => Err(unknown(&format!("{}.{layer}.hook_{short}", Stack::Blocks.name()), config)),
        }
    }
}

impl<L: Into<Layer> + Copy> HookName for (&str, L, &str) {
    fn resolve(&self, config: &Config) -> Result<HookPoint> {
        let (short, layer, within) = (self.0, self.1.into(), self.2);
        match site(short, Some(within)) {
            Some(site) => HookPoint::in_layer(layer, site).resolve(config),
            None => Err(unknown(&format!("{}.{layer}.{within}.hook_{short}", Stack::Blocks.name()), config)),
        }
    }
}

impl<T: HookName + ?Sized> HookName for &T {
    fn resolve(&self, config: &Config) -> Result<HookPoint> {
        (**self).resolve(config)
    }
}

/// No name is as long as this: a longer one is not looked up, so that a hostile one costs nothing.
const LONGEST: usize = 128;

/// The site that a short name means, in every layer: `"resid_post"`, `"pattern"`, `("scale", "ln1")`.
pub(crate) fn site(short: &str, within: Option<&str>) -> Option<Site> {
    if short.len() > LONGEST || within.is_some_and(|within| within.len() > LONGEST) {
        return None;
    }
    let named = |name: &str| Site::named(name, &[Place::Layer]);
    // TransformerLens' `act_name` lets a layer type be given where it is not needed.
    let within = match within {
        Some("a" | "attn") => "attn.",
        Some("m" | "mlp") => "mlp.",
        Some("b" | "block" | "blocks") | None => "",
        Some(norm) => return named(&format!("{norm}.hook_{short}")),
    };
    let short = match short {
        "attn" => "pattern",
        "attn_logits" => "attn_scores",
        "key" => "k",
        "query" => "q",
        "value" => "v",
        "mlp_pre" => "pre",
        "mlp_mid" => "mid",
        "mlp_post" => "post",
        other => other,
    };
    let prefixes = if within.is_empty() { ["", "attn.", "mlp."] } else { [within, "", ""] };
    prefixes.iter().find_map(|prefix| named(&format!("{prefix}hook_{short}")))
}

/// A whole name: `blocks.0.attn.hook_q`, `blocks.0.mlp.experts.3.hook_post`, `hook_embed`.
pub(crate) fn whole(name: &str) -> Option<HookPoint> {
    if name.len() > LONGEST {
        return None;
    }
    if let Some(site) = Site::named(name, &[Place::Before, Place::After]) {
        return Some(HookPoint::outside(site));
    }
    let (stack, rest) = name.split_once('.')?;
    let stack = Stack::ALL.into_iter().find(|candidate| candidate.name() == stack)?;
    let (layer, rest) = rest.split_once('.')?;
    let layer = Layer::from(index(layer)?);
    let point = match rest.strip_prefix("mlp.experts.").and_then(|rest| rest.split_once('.')) {
        Some((expert, rest)) => HookPoint::in_expert(layer, index(expert)?, Site::named(rest, &[Place::Expert])?),
        None => HookPoint::in_layer(layer, Site::named(rest, &[Place::Layer])?),
    };
    Some(point.with_stack(stack))
}

/// The compact short hand: `k6`, `resid_post11`, `scale2ln1`, and `embed`, which needs no layer.
fn compact(name: &str) -> Option<HookPoint> {
    if name.len() > LONGEST {
        return None;
    }
    if let Some(site) = Site::named(&format!("hook_{name}"), &[Place::Before, Place::After]) {
        return Some(HookPoint::outside(site));
    }
    let start = name.find(|c: char| c.is_ascii_digit())?;
    let (short, rest) = name.split_at(start);
    let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    let (layer, within) = rest.split_at(end);
    let site = site(short, Some(within).filter(|within| !within.is_empty()))?;
    Some(HookPoint::in_layer(index(layer)?.into(), site))
}

/// A number as names have it: without sign and leading zeros.
fn index(digits: &str) -> Option<usize> {
    let canonical = digits.bytes().all(|byte| byte.is_ascii_digit()) && (digits == "0" || !digits.starts_with('0'));
    digits.parse().ok().filter(|_| canonical)
}
