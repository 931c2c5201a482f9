//! Names of hook points: TransformerLens' strings and short hand, parsed against a model.

use super::nearest::unknown;
use super::point::HookPoint;
use super::presence::{presence, Presence};
use super::site::{Place, Site};
use crate::config::Stack;
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
        let Some(point) = point.in_stack(config.stack) else {
            return Err(Error::HookNotInModel { name: point.to_string(), why: other_stack(config.stack).into() });
        };
        match presence(point, config) {
            Presence::Absent(why) => Err(Error::HookNotInModel { name: point.to_string(), why: why.into() }),
            _ => Ok(point),
        }
    }
}

impl HookName for str {
    fn resolve(&self, config: &Config) -> Result<HookPoint> {
        let point = whole(self, config.stack).or_else(|| compact(self, config.stack));
        point.ok_or_else(|| unknown(self, config))?.resolve(config)
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
        match site(short, None, config.stack) {
            Some(site) => HookPoint::in_layer(layer, site).resolve(config),
            None => Err(unknown(&format!("{}.{layer}.hook_{short}", config.stack.name()), config)),
        }
    }
}

impl<L: Into<Layer> + Copy> HookName for (&str, L, &str) {
    fn resolve(&self, config: &Config) -> Result<HookPoint> {
        let (short, layer, within) = (self.0, self.1.into(), self.2);
        match site(short, Some(within), config.stack) {
            Some(site) => HookPoint::in_layer(layer, site).resolve(config),
            None => Err(unknown(&format!("{}.{layer}.{within}.hook_{short}", config.stack.name()), config)),
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

/// The site that a short name means, in every layer of a stack: `"resid_post"`, `"pattern"`, `("scale", "ln1")`,
/// `("pattern", "cross_attn")`.
pub(crate) fn site(short: &str, within: Option<&str>, stack: Stack) -> Option<Site> {
    if short.len() > LONGEST || within.is_some_and(|within| within.len() > LONGEST) {
        return None;
    }
    let named = |name: &str| Site::named(name, &[Place::Layer], stack);
    // TransformerLens' `act_name` lets a layer type be given where it is not needed.
    let within = match within {
        Some("a" | "attn") => "attn.",
        Some("m" | "mlp") => "mlp.",
        Some("cross_attn") => "cross_attn.",
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
pub(crate) fn whole(name: &str, own: Stack) -> Option<HookPoint> {
    if name.len() > LONGEST {
        return None;
    }
    if let Some((hook, step)) = name.rsplit_once('.')
        && let Some(site) = Site::named(step, &[Place::Dictionary], own)
    {
        let hook = whole(hook, own).filter(|hook| hook.spliced_at().is_none() && hook.expert().is_none())?;
        return Some(HookPoint::of_dictionary(hook, site));
    }
    // TransformerLens' `hook_embed` is the encoder's.
    let is_of_encoder = |site: &Site| own == Stack::Decoder && *site == Site::Embed;
    if let Some(site) =
        Site::named(of_encoder(name), &[Place::Before, Place::After], own).filter(|site| !is_of_encoder(site))
    {
        return Some(HookPoint::outside(site));
    }
    if let Some(point) = outside_of_two(name) {
        return Some(point);
    }
    let (stack, rest) = name.split_once('.')?;
    let stack = Stack::ALL.into_iter().find(|candidate| candidate.name() == stack)?;
    let stack = if stack == Stack::Blocks { own } else { stack };
    let (layer, rest) = rest.split_once('.')?;
    let layer = Layer::from(index(layer)?);
    let point = match rest.strip_prefix("mlp.experts.").and_then(|rest| rest.split_once('.')) {
        Some((expert, rest)) => {
            HookPoint::in_expert(layer, index(expert)?, Site::named(rest, &[Place::Expert], stack)?)
        }
        None => HookPoint::in_layer(layer, Site::named(rest, &[Place::Layer], stack)?),
    };
    Some(point.with_stack(stack))
}

/// A point outside the layers of an encoder or decoder: `decoder.hook_embed`, `encoder_final_ln.hook_scale`.
fn outside_of_two(name: &str) -> Option<HookPoint> {
    let stack = [Stack::Encoder, Stack::Decoder].into_iter().find(|stack| name.starts_with(stack.name()))?;
    let sites = Site::at(Place::Before).chain(Site::at(Place::After));
    sites.map(|site| HookPoint::outside(site).with_stack(stack)).find(|point| point.to_string() == name)
}

/// Why a model of this stack has no point of another one.
fn other_stack(stack: Stack) -> &'static str {
    match stack {
        Stack::Blocks => "it is one stack of blocks, without encoder or decoder",
        Stack::Encoder => "it is an encoder",
        Stack::Decoder => "it is a decoder",
    }
}

/// The names that TransformerLens' `HookedEncoder` has for two points of the embedding, as `HookedTransformer` calls them.
fn of_encoder(name: &str) -> &str {
    match name {
        "embed.hook_embed" => Site::Embed.name(),
        "embed.hook_pos_embed" => Site::PosEmbed.name(),
        name => name,
    }
}

/// The compact short hand: `k6`, `resid_post11`, `scale2ln1`, and `embed`, which needs no layer.
fn compact(name: &str, stack: Stack) -> Option<HookPoint> {
    if name.len() > LONGEST {
        return None;
    }
    for name in [format!("hook_{name}"), format!("embed.hook_{name}")] {
        if let Some(site) = Site::named(&name, &[Place::Before, Place::After], stack) {
            return Some(HookPoint::outside(site));
        }
    }
    let start = name.find(|c: char| c.is_ascii_digit())?;
    let (short, rest) = name.split_at(start);
    let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    let (layer, within) = rest.split_at(end);
    let site = site(short, Some(within).filter(|within| !within.is_empty()), stack)?;
    Some(HookPoint::in_layer(index(layer)?.into(), site))
}

/// A number as names have it: without sign and leading zeros.
fn index(digits: &str) -> Option<usize> {
    let canonical = digits.bytes().all(|byte| byte.is_ascii_digit()) && (digits == "0" || !digits.starts_with('0'));
    digits.parse().ok().filter(|_| canonical)
}
