//! Which extended attributes are carried along, and what has to change for a copy to have them.

use super::tree::{Attribute, Tree};

const ACCESS_LISTS: [&[u8]; 2] = [b"system.posix_acl_access", b"system.posix_acl_default"];
/// Attributes that say how s2sfs stores a file; most of them cannot be set.
pub const OWN: &[u8] = b"user.s2sfs.";
const CAPABILITY: &[u8] = b"security.capability";

/// Whether an attribute belongs to what is copied. `security.` and `trusted.` are for root alone.
fn is_carried(name: &[u8], as_root: bool) -> bool {
    let plain = name.starts_with(b"user.") || ACCESS_LISTS.contains(&name);
    plain || as_root && (name.starts_with(b"security.") || name.starts_with(b"trusted."))
}

/// Whether an attribute that the original does not have is taken from the copy. The system itself gives
/// files attributes of `security.`, but for capabilities, which somebody has taken from the original.
fn is_removed(name: &[u8]) -> bool {
    let by_system = name.starts_with(b"security.") && name != CAPABILITY;
    !by_system && !name.starts_with(OWN)
}

/// The attributes of a file that are carried along.
#[derive(Debug, Default)]
pub struct Attributes {
    values: Vec<Attribute>,
    /// What is missing, and why.
    pub unread: Vec<String>,
}

impl Attributes {
    pub fn read<T: Tree>(tree: &T, dir: &T::Dir, name: &[u8], as_root: bool) -> Attributes {
        let mut attributes = Attributes::default();
        let names = tree.attribute_names(dir, name).unwrap_or_else(|error| {
            let why = format!("cannot list attributes: {error}");
            attributes.unread.push(why);
            Vec::new()
        });
        for key in names.into_iter().filter(|key| is_carried(key, as_root)) {
            match tree.attribute(dir, name, &key) {
                Ok(Some(value)) => attributes.values.push((key, value)),
                Ok(None) => {}
                Err(error) => {
                    let key = String::from_utf8_lossy(&key);
                    let why = format!("cannot read attribute {key}: {error}");
                    attributes.unread.push(why);
                }
            }
        }
        attributes
    }
}

/// What makes the attributes of a copy those of the original.
pub struct Difference<'a> {
    pub set: Vec<&'a Attribute>,
    pub remove: Vec<&'a [u8]>,
}

impl<'a> Difference<'a> {
    /// Nothing is removed because it could not be read.
    pub fn of(original: &'a Attributes, copy: &'a Attributes) -> Difference<'a> {
        let set = original.values.iter();
        let set = set.filter(|attribute| !copy.values.contains(attribute));
        let kept = |name: &[u8]| {
            let mut values = original.values.iter();
            !original.unread.is_empty() || values.any(|attribute| attribute.0 == name)
        };
        let remove = copy.values.iter().map(|attribute| &attribute.0[..]);
        let remove = remove.filter(|name| is_removed(name) && !kept(name));
        Difference {
            set: set.collect(),
            remove: remove.collect(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.set.is_empty() && self.remove.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Those of them that root, or anybody, carries.
    fn carried(attributes: &[(&str, &str)], as_root: bool) -> Attributes {
        let all = attributes.iter();
        let all = all.map(|&(name, value)| (name.into(), value.into()));
        Attributes {
            values: all
                .filter(|(name, _): &Attribute| is_carried(name, as_root))
                .collect(),
            unread: Vec::new(),
        }
    }

    #[test]
    fn a_copy_loses_what_the_original_lacks_and_gets_what_differs() {
        let original = [
            ("user.a", "1"),
            ("user.b", "2"),
            ("trusted.c", "3"),
            ("system.other", "4"),
        ];
        let copy = [
            ("user.a", "1"),
            ("user.b", "old"),
            ("system.posix_acl_access", "x"),
            ("security.capability", "revoked"),
            ("security.selinux", "label"),
        ];
        let names = |as_root, unread: &[&str]| {
            let mut original = carried(&original, as_root);
            original.unread = unread.iter().map(ToString::to_string).collect();
            let copy = carried(&copy, as_root);
            let difference = Difference::of(&original, &copy);
            let text = |name: &[u8]| String::from_utf8_lossy(name).into_owned();
            let set: Vec<String> = difference.set.iter().map(|a| text(&a.0)).collect();
            let remove: Vec<String> = difference.remove.iter().map(|name| text(name)).collect();
            (set.join(" "), remove.join(" "))
        };
        let expect = |set: &str, remove: &str| (set.to_owned(), remove.to_owned());
        let gone = "system.posix_acl_access security.capability";
        assert_eq!(names(true, &[]), expect("user.b trusted.c", gone));
        assert_eq!(
            names(false, &[]),
            expect("user.b", "system.posix_acl_access")
        );
        assert_eq!(names(true, &["one"]), expect("user.b trusted.c", ""));
        let same = carried(&original, true);
        assert!(Difference::of(&same, &same).is_empty());
    }
}
