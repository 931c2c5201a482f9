//! Names of hook points: TransformerLens' strings and short hand, parsed against a model.

use super::point::{ExpertSite, HookPoint, Site, EXPERT_SITES, OUTSIDE, SITES};
use super::presence::{all_points, presence, Presence};
use crate::{Config, Error, Result};

/// Anything that names one hook point of a model.
///
/// - a typed point: `hook::q(0)`
/// - TransformerLens' name: `"blocks.0.attn.hook_q"`, `"hook_embed"`
/// - its short hand, with a layer that may be negative: `("q", 0)`, `("resid_post", -1)`,
///   `("scale", 2, "ln1")`, `"k6"`, `"pattern3"`, `"scale2ln1"`, `"embed"`
///
/// ```
/// use tch_lens::{hook::{self, HookName}, HookedTransformer};
/// let model = HookedTransformer::toy()?;
/// let config = model.config();
/// assert_eq!(("resid_post", -1).resolve(config)?, hook::resid_post(3));
/// assert_eq!("k2".resolve(config)?, hook::k(2));
/// let error = "blocks.0.attn.hook_qq".resolve(config).unwrap_err();
/// assert_eq!(error.to_string(), "there is no hook point `blocks.0.attn.hook_qq`; the nearest is `blocks.0.attn.hook_q`");
/// # Ok::<(), tch_lens::Error>(())
/// ```
pub trait HookName {
    /// The hook point of a model of this shape.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownHook`], with the nearest name; [`Error::HookNotInModel`]; [`Error::LayerOutOfRange`].
    fn resolve(&self, config: &Config) -> Result<HookPoint>;
}

impl HookName for HookPoint {
    fn resolve(&self, config: &Config) -> Result<HookPoint> {
        if let Some(layer) = self.layer() {
            config.layer(i64::try_from(layer).unwrap_or(i64::MAX))?;
        }
        match presence(*self, config) {
            Presence::Absent(why) => Err(Error::HookNotInModel { name: self.to_string(), why: why.into() }),
            _ => Ok(*self),
        }
    }
}

impl HookName for str {
    fn resolve(&self, config: &Config) -> Result<HookPoint> {
        let point = match parse_full(self, config)? {
            Some(point) => point,
            None => parse_compact(self, config)?.ok_or_else(|| unknown(self, config))?,
        };
        point.resolve(config)
    }
}

impl HookName for String {
    fn resolve(&self, config: &Config) -> Result<HookPoint> {
        self.as_str().resolve(config)
    }
}

impl HookName for (&str, i64) {
    fn resolve(&self, config: &Config) -> Result<HookPoint> {
        in_block(self.0, None, config.layer(self.1)?)
            .ok_or_else(|| unknown(&format!("blocks.{}.hook_{}", self.1, self.0), config))?
            .resolve(config)
    }
}

impl HookName for (&str, i64, &str) {
    fn resolve(&self, config: &Config) -> Result<HookPoint> {
        in_block(self.0, Some(self.2), config.layer(self.1)?)
            .ok_or_else(|| unknown(&format!("blocks.{}.{}.hook_{}", self.1, self.2, self.0), config))?
            .resolve(config)
    }
}

impl<T: HookName + ?Sized> HookName for &T {
    fn resolve(&self, config: &Config) -> Result<HookPoint> {
        (**self).resolve(config)
    }
}

/// The sites that a short name means, in every block: `"resid_post"`, `"pattern"`, `("scale", "ln1")`.
pub(crate) fn site(short: &str, within: Option<&str>) -> Option<Site> {
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

fn named(name: &str) -> Option<Site> {
    SITES.iter().find(|(_, n)| *n == name).map(|(site, _)| *site)
}

fn in_block(short: &str, within: Option<&str>, layer: usize) -> Option<HookPoint> {
    site(short, within).map(|site| HookPoint::Block(layer, site))
}

/// A whole name: `blocks.0.attn.hook_q`, `blocks.0.mlp.experts.3.hook_post`, `hook_embed`.
fn parse_full(name: &str, config: &Config) -> Result<Option<HookPoint>> {
    if let Some((point, _)) = OUTSIDE.iter().find(|(_, n)| *n == name) {
        return Ok(Some(*point));
    }
    let Some((layer, rest)) = name.strip_prefix("blocks.").and_then(|rest| rest.split_once('.')) else {
        return Ok(None);
    };
    let Ok(layer) = layer.parse::<usize>() else { return Ok(None) };
    if let Some((expert, rest)) = rest.strip_prefix("mlp.experts.").and_then(|rest| rest.split_once('.')) {
        let site = EXPERT_SITES.iter().find(|(_, n)| *n == rest).map(|(site, _): &(ExpertSite, _)| *site);
        return Ok(match (expert.parse(), site) {
            (Ok(expert), Some(site)) => Some(HookPoint::Expert { layer, expert, site }),
            _ => None,
        });
    }
    let Some(site) = named(rest) else { return Ok(None) };
    config.layer(i64::try_from(layer).unwrap_or(i64::MAX))?;
    Ok(Some(HookPoint::Block(layer, site)))
}

/// The compact short hand: `k6`, `resid_post11`, `scale2ln1`, and `embed`, which needs no layer.
fn parse_compact(name: &str, config: &Config) -> Result<Option<HookPoint>> {
    let hooked = format!("hook_{name}");
    if let Some((point, _)) = OUTSIDE.iter().find(|(_, n)| *n == hooked) {
        return Ok(Some(*point));
    }
    let Some(start) = name.find(|c: char| c.is_ascii_digit()) else { return Ok(None) };
    let (short, rest) = name.split_at(start);
    let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    let (layer, within) = rest.split_at(end);
    let Ok(layer) = layer.parse::<i64>() else { return Ok(None) };
    let Some(site) = site(short, Some(within).filter(|w| !w.is_empty())) else { return Ok(None) };
    Ok(Some(HookPoint::Block(config.layer(layer)?, site)))
}

/// Names of hook points are shorter than this. What comes after it in a mistyped name is not compared: the time that a
/// comparison takes grows with the length.
const LONGEST_COMPARED: usize = 128;

/// The error for a name that names no hook point, with the nearest one of this model: a slip anywhere in a whole name counts
/// as much as an end that is nearly right behind a beginning that is not.
pub(crate) fn unknown(name: &str, config: &Config) -> Error {
    let ends = (0..=name.len().min(LONGEST_COMPARED)).rev();
    let compared = ends.filter(|end| name.is_char_boundary(*end)).map(|end| &name[..end]).next().unwrap_or("");
    let (before, end) = before_and_end(compared);
    let distance = |candidate: &String| {
        let (its_before, its_end) = before_and_end(candidate);
        let of_ends = 2 * edit_distance(end, its_end) + 1;
        (of_ends.min(edit_distance(compared, candidate)), edit_distance(&before, &its_before))
    };
    let nearest = all_points(config).map(|point| point.to_string()).min_by_key(distance).unwrap_or_default();
    Error::UnknownHook { name: name.into(), nearest }
}

/// A name without its `hook_`, taken apart: `blocks.3.attn.` and `pattern`, of the whole name; `blocks.3.` and `pattern`
/// of `pattern3`.
fn before_and_end(name: &str) -> (String, &str) {
    let (before, end) = name.rsplit_once('.').unwrap_or(("", name));
    if !before.is_empty() || end.starts_with("hook_") {
        return (before.into(), end.strip_prefix("hook_").unwrap_or(end));
    }
    let start = end.find(|c: char| c.is_ascii_digit()).unwrap_or(end.len());
    let (end, rest) = end.split_at(start);
    let layer: String = rest.chars().take_while(char::is_ascii_digit).collect();
    (format!("blocks.{}", if layer.is_empty() { "0" } else { &layer }), end)
}

/// Levenshtein's distance, in bytes: names are ASCII.
fn edit_distance(a: &str, b: &str) -> usize {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}
