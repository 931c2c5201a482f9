//! [`PointSet`]: a set of hook points whose look-ups are bit tests.

use super::point::HookPoint;
use super::presence::all_points;
use super::site::Place;
use crate::Config;

/// A set of resolved hook points of one model, which is one stack: a word of bits for each layer and each expert, and one for what is
/// outside the layers. An empty set takes no memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct PointSet {
    outside: u128,
    layers: Vec<Bits>,
    /// The places of dictionaries, of which there are few.
    dictionaries: Vec<HookPoint>,
}

/// The points of one layer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Bits {
    sites: u128,
    experts: Vec<u128>,
}

impl PointSet {
    /// Adds a point; one whose layer is not counted from the start is in no set.
    pub(crate) fn insert(&mut self, point: HookPoint) {
        if point.site().place() == Place::Dictionary {
            if !self.dictionaries.contains(&point) && point.signed_layer().is_none_or(|layer| layer.index().is_some()) {
                self.dictionaries.push(point);
            }
            return;
        }
        let bit = point.site().bit();
        let Some(layer) = point.layer() else {
            if point.signed_layer().is_none() {
                self.outside |= bit;
            }
            return;
        };
        if layer >= self.layers.len() {
            self.layers.resize_with(layer + 1, Bits::default);
        }
        let Bits { sites, experts } = &mut self.layers[layer];
        match point.expert() {
            None => *sites |= bit,
            Some(expert) => {
                if expert >= experts.len() {
                    experts.resize(expert + 1, 0);
                }
                experts[expert] |= bit;
            }
        }
    }

    #[inline]
    pub(crate) fn contains(&self, point: HookPoint) -> bool {
        let bit = point.site().bit();
        let word = match point.site().place() {
            Place::Before | Place::After => self.outside,
            Place::Dictionary => return self.dictionaries.contains(&point),
            Place::Layer => self.layer(point).map_or(0, |bits| bits.sites),
            Place::Expert => {
                let experts = self.layer(point).map(|bits| &bits.experts);
                experts.and_then(|experts| experts.get(point.expert()?)).copied().unwrap_or(0)
            }
        };
        word & bit != 0
    }

    #[inline]
    fn layer(&self, point: HookPoint) -> Option<&Bits> {
        self.layers.get(point.layer()?)
    }

    pub(crate) fn len(&self) -> usize {
        let words = self.layers.iter().flat_map(|bits| std::iter::once(&bits.sites).chain(&bits.experts));
        let bits = self.outside.count_ones() + words.map(|word| word.count_ones()).sum::<u32>();
        bits as usize + self.dictionaries.len()
    }

    /// The points, in the order in which they fire in a model of this shape.
    pub(crate) fn iter<'a>(&'a self, config: &'a Config) -> impl Iterator<Item = HookPoint> + 'a {
        all_points(config).filter(|point| self.contains(*point))
    }
}

impl Extend<HookPoint> for PointSet {
    fn extend<T: IntoIterator<Item = HookPoint>>(&mut self, points: T) {
        points.into_iter().for_each(|point| self.insert(point));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;
    use crate::config::{Activation, Experts, MlpConfig, PerLayer, Routing};
    use crate::hook::Site;
    use crate::layer::Layer;

    fn point() -> impl Strategy<Value = HookPoint> {
        let sites = prop::sample::select(Site::ALL);
        (sites, 0..70usize, 0..40usize).prop_map(|(site, layer, expert)| match site.place() {
            Place::Before | Place::After => HookPoint::outside(site),
            Place::Layer => HookPoint::in_layer(layer.into(), site),
            Place::Expert => HookPoint::in_expert(layer.into(), expert, site),
            Place::Dictionary => HookPoint::of_dictionary(HookPoint::in_layer(layer.into(), Site::Z), site),
        })
    }

    proptest! {
        #[test]
        fn a_set_holds_what_was_put_in(members in prop::collection::vec(point(), 0..60), others in prop::collection::vec(point(), 0..60)) {
            let mut set = PointSet::default();
            set.extend(members.iter().copied());
            let members: HashSet<HookPoint> = members.into_iter().collect();
            prop_assert_eq!(set.len(), members.len());
            for point in members.iter().chain(&others) {
                prop_assert_eq!(set.contains(*point), members.contains(point), "{}", point);
            }
        }
    }

    #[test]
    fn a_layer_from_the_end_is_in_no_set() {
        let mut set = PointSet::default();
        set.insert(HookPoint::in_layer(Layer::from(-1), Site::Q));
        assert_eq!(set, PointSet::default());
        assert!(!set.contains(HookPoint::in_layer(Layer::from(-1), Site::Q)));
    }

    #[test]
    fn a_set_is_listed_in_firing_order() {
        let experts = Experts { dense: PerLayer::Each(vec![Some(6), None]), ..Experts::new(3, 2, Routing::softmax()) };
        let mlp = Some(MlpConfig::experts(8, Activation::Silu, experts));
        let config = Config { mlp, ..Config::new(2, 8, 2, 10, 10) };
        let mut set = PointSet::default();
        let points: Vec<HookPoint> = all_points(&config).collect();
        set.extend(points.iter().rev().copied());
        assert_eq!(set.iter(&config).collect::<Vec<_>>(), points);
        assert!(points.is_sorted()); // norms stand before their sublayers
    }
}
