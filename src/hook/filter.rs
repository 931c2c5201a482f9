//! [`HookFilter`]: which hook points a filter or a hook is about.

use super::name::{site, HookName};
use super::point::HookPoint;
use super::presence::{all_points, presence, Presence};
use super::section::Section;
use super::site::{Place, Site};
use crate::layer::Layer;
use crate::{Config, Error, Result};

/// Which hook points are meant: what a cache keeps, where a hook stands.
///
/// Made from names in all their forms, several of them, or a predicate:
///
/// ```
/// use tch_lens::{hook, HookedTransformer, HookFilter};
/// let model = HookedTransformer::toy()?;
/// let count = |select: HookFilter| Ok::<_, tch_lens::Error>(model.run_with_cache_of("When Mary", select)?.1.len());
/// assert_eq!(count("resid_post".into())?, 4); // in every block
/// assert_eq!(count(("pattern", -1).into())?, 1);
/// assert_eq!(count([hook::z(0), hook::z(1)].into())?, 2);
/// assert_eq!(count(["hook_embed", "resid_post"].into())?, 5);
/// assert_eq!(count(HookFilter::names(|name| name.ends_with("hook_z")))?, 4);
/// # Ok::<(), tch_lens::Error>(())
/// ```
///
/// What is computed on request only (`result`, `q_input`, `attn_in`, `mlp_in`, …) is selected by its name, never
/// by [`HookFilter::All`] or a predicate. What selects nothing is an error.
#[derive(Default)]
pub enum HookFilter<'a> {
    /// Every hook point that fires by default.
    #[default]
    All,
    /// These.
    These(Vec<Name>),
    /// Those, of the ones that fire by default, for which this holds.
    Where(Box<dyn Fn(HookPoint) -> bool + 'a>),
}

/// One entry of a [`HookFilter`]: a name that is looked up once the model is known.
#[derive(Clone, Debug)]
pub enum Name {
    /// A typed point.
    Point(HookPoint),
    /// A whole name, a compact short hand, or the short hand of a site in every block.
    Text(String),
    /// A site and its layer, which may be negative.
    InLayer(String, Layer),
    /// A site, its layer and what it is in.
    Within(String, Layer, String),
}

impl<'a> HookFilter<'a> {
    /// Those, of the points that fire by default, for which `predicate` holds.
    pub fn matching(predicate: impl Fn(HookPoint) -> bool + 'a) -> Self {
        HookFilter::Where(Box::new(predicate))
    }

    /// Those, of the points that fire by default, for whose name `predicate` holds.
    pub fn names(predicate: impl Fn(&str) -> bool + 'a) -> Self {
        HookFilter::matching(move |point| predicate(&point.to_string()))
    }

    /// The same filter, for as long as this one lives.
    pub(crate) fn by_ref(&self) -> HookFilter<'_> {
        match self {
            HookFilter::All => HookFilter::All,
            HookFilter::These(names) => HookFilter::These(names.clone()),
            HookFilter::Where(predicate) => HookFilter::matching(predicate),
        }
    }

    /// What the filter means in a model of this shape, one of several; `None` where that is nothing.
    pub(crate) fn in_model(self, config: &Config) -> Option<Self> {
        match self {
            HookFilter::These(mut names) => {
                names.retain(|name| name.resolve(config, &mut Vec::new()).is_ok());
                (!names.is_empty()).then_some(HookFilter::These(names))
            }
            other => other.resolve(config).is_ok().then_some(other),
        }
    }

    /// That every name of the filter is one of these models'.
    ///
    /// # Errors
    ///
    /// The name's own ([`HookName::resolve`]); [`Error::NothingSelected`].
    pub(crate) fn check_in(&self, encoder: &Config, decoder: &Config) -> Result<()> {
        match self {
            HookFilter::These(names) if !names.is_empty() => names.iter().try_for_each(|name| {
                let found = |config| name.resolve(config, &mut Vec::new());
                match (found(encoder), found(decoder)) {
                    (Err(error), Err(_)) if matches!(name, Name::Text(text) if text.starts_with("encoder")) => {
                        Err(error)
                    }
                    (Err(_), Err(error)) => Err(error),
                    _ => Ok(()),
                }
            }),
            other => other.resolve(encoder).or_else(|_| other.resolve(decoder)).map(|_| ()),
        }
    }

    /// The points meant, in firing order.
    ///
    /// # Errors
    ///
    /// A name's own ([`HookName::resolve`]); [`Error::NothingSelected`].
    pub fn resolve(&self, config: &Config) -> Result<Vec<HookPoint>> {
        let by_default = || all_points(config).filter(|point| presence(*point, config) == Presence::Default);
        match self {
            HookFilter::All => Ok(by_default().collect()),
            HookFilter::These(names) if names.is_empty() => {
                Err(Error::NothingSelected { what: "an empty list of names".into(), hint: String::new() })
            }
            HookFilter::These(names) => {
                let mut points = Vec::new();
                for name in names {
                    name.resolve(config, &mut points)?;
                }
                Ok(points)
            }
            HookFilter::Where(predicate) => {
                let points: Vec<_> = by_default().filter(|point| predicate(*point)).collect();
                if !points.is_empty() {
                    return Ok(points);
                }
                let on_request = all_points(config).find(|point| predicate(*point));
                let hint = on_request.map_or(String::new(), |point| {
                    format!(": `{point}` is computed on request only, so ask for it by name")
                });
                Err(Error::NothingSelected { what: "the predicate".into(), hint })
            }
        }
    }
}

impl HookFilter<'_> {
    /// The points meant that a run through `section` reaches.
    ///
    /// # Errors
    ///
    /// Those of [`HookFilter::resolve`], and where nothing that a name means is reached.
    pub(crate) fn reached(&self, config: &Config, section: &Section) -> Result<Vec<HookPoint>> {
        let names = match self {
            HookFilter::These(names) if !names.is_empty() => names.as_slice(),
            _ => &[],
        };
        if names.is_empty() {
            let points = self.resolve(config)?;
            let beyond = points.first().copied();
            let reached: Vec<_> = points.into_iter().filter(|point| section.reaches(*point, config)).collect();
            if reached.is_empty() {
                let why = beyond.and_then(|point| section.why_unreached(point, config));
                let hint = why.map_or(String::new(), |why| format!(" that is reached: {why}"));
                return Err(Error::NothingSelected { what: "the predicate".into(), hint });
            }
            return Ok(reached);
        }
        let mut points = Vec::new();
        for name in names {
            // A site's short hand means every block that runs; anything else means one point, which must be reached.
            let mut of_name = Vec::new();
            name.resolve(config, &mut of_name)?;
            let last = of_name.last().copied();
            of_name.retain(|point| section.reaches(*point, config));
            if let (true, Some(beyond)) = (of_name.is_empty(), last) {
                let why = section.why_unreached(beyond, config).unwrap_or_default();
                return Err(Error::NeverReached { name: beyond.to_string(), why });
            }
            points.extend(of_name);
        }
        Ok(points)
    }
}

impl Name {
    fn resolve(&self, config: &Config, points: &mut Vec<HookPoint>) -> Result<()> {
        match self {
            Name::Point(point) => points.push(point.resolve(config)?),
            Name::InLayer(short, layer) => points.push((short.as_str(), *layer).resolve(config)?),
            Name::Within(short, layer, within) => {
                points.push((short.as_str(), *layer, within.as_str()).resolve(config)?);
            }
            Name::Text(text) => match site(text, None, config.stack) {
                // `resid_post`: that site in every block.
                Some(site) if !text.contains("hook_") => {
                    // Layers differ in which points they have: an error where none has it.
                    let each =
                        (0..config.n_layers).map(|layer| HookPoint::in_layer(layer.into(), site).resolve(config));
                    let (found, missing): (Vec<_>, Vec<_>) = each.partition(Result::is_ok);
                    if let (true, Some(error)) = (found.is_empty(), missing.into_iter().next()) {
                        return error.map(|_| ());
                    }
                    points.extend(found.into_iter().flatten());
                }
                None if Site::named(&format!("hook_{}", shortened(text)), &[Place::Dictionary], config.stack)
                    .is_some() =>
                {
                    let site = Site::named(&format!("hook_{}", shortened(text)), &[Place::Dictionary], config.stack);
                    let before = points.len();
                    points.extend(all_points(config).filter(|point| Some(point.site()) == site));
                    if points.len() == before {
                        let what = format!("`{text}`");
                        let hint = ": no dictionary is attached (`HookedTransformer::with_saes`)".into();
                        return Err(Error::NothingSelected { what, hint });
                    }
                }
                _ => points.push(text.as_str().resolve(config)?),
            },
        }
        Ok(())
    }
}

/// A name that is no longer than any that exists.
fn shortened(name: &str) -> &str {
    name.get(..name.len().min(32)).unwrap_or("")
}

impl From<HookPoint> for Name {
    fn from(point: HookPoint) -> Self {
        Name::Point(point)
    }
}

impl From<&str> for Name {
    fn from(name: &str) -> Self {
        Name::Text(name.into())
    }
}

impl From<String> for Name {
    fn from(name: String) -> Self {
        Name::Text(name)
    }
}

impl From<&String> for Name {
    fn from(name: &String) -> Self {
        Name::Text(name.clone())
    }
}

impl<L: Into<Layer>> From<(&str, L)> for Name {
    fn from((short, layer): (&str, L)) -> Self {
        Name::InLayer(short.into(), layer.into())
    }
}

impl<L: Into<Layer>> From<(&str, L, &str)> for Name {
    fn from((short, layer, within): (&str, L, &str)) -> Self {
        Name::Within(short.into(), layer.into(), within.into())
    }
}

macro_rules! filter_from_one {
    ($([$($layer:ident)?] $type:ty),*) => {
        $(impl$(<$layer: Into<Layer>>)? From<$type> for HookFilter<'_> {
            fn from(name: $type) -> Self {
                HookFilter::These(vec![name.into()])
            }
        })*
    };
}
filter_from_one!([] HookPoint, [] &str, [] String, [] &String, [L] (&str, L), [L] (&str, L, &str));

impl<T: Into<Name>, const N: usize> From<[T; N]> for HookFilter<'_> {
    fn from(names: [T; N]) -> Self {
        HookFilter::These(names.into_iter().map(Into::into).collect())
    }
}

impl<T: Into<Name>> From<Vec<T>> for HookFilter<'_> {
    fn from(names: Vec<T>) -> Self {
        HookFilter::These(names.into_iter().map(Into::into).collect())
    }
}

impl<T: Into<Name> + Clone> From<&[T]> for HookFilter<'_> {
    fn from(names: &[T]) -> Self {
        HookFilter::These(names.iter().cloned().map(Into::into).collect())
    }
}
