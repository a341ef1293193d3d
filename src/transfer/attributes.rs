//! Which extended attributes are carried along, and what has to change for a copy to have them.

use super::tree::Attribute;

const ACCESS_LISTS: [&[u8]; 2] = [b"system.posix_acl_access", b"system.posix_acl_default"];
/// Attributes that say how s2sfs stores a file; most of them cannot be set.
pub const OWN: &[u8] = b"user.s2sfs.";

/// Whether an attribute belongs to what is copied. `security.` and `trusted.` are for root alone.
fn is_carried(name: &[u8], as_root: bool) -> bool {
    let plain = name.starts_with(b"user.") || ACCESS_LISTS.contains(&name);
    plain || as_root && (name.starts_with(b"security.") || name.starts_with(b"trusted."))
}

/// Whether an attribute that the original does not have is taken from the copy. The system itself gives
/// files attributes of `security.`.
fn is_removed(name: &[u8], as_root: bool) -> bool {
    is_carried(name, as_root) && !name.starts_with(b"security.") && !name.starts_with(OWN)
}

/// What makes the attributes of a copy those of the original.
pub struct Difference<'a> {
    pub set: Vec<&'a Attribute>,
    pub remove: Vec<&'a [u8]>,
}

impl<'a> Difference<'a> {
    pub fn of(original: &'a [Attribute], copy: &'a [Attribute], as_root: bool) -> Difference<'a> {
        let set = original
            .iter()
            .filter(|attribute| is_carried(&attribute.0, as_root) && !copy.contains(attribute));
        let kept = |name: &[u8]| original.iter().any(|attribute| attribute.0 == name);
        let remove = copy
            .iter()
            .map(|attribute| &attribute.0[..])
            .filter(|name| is_removed(name, as_root) && !kept(name));
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

    fn attribute(name: &str, value: &str) -> Attribute {
        (name.into(), value.into())
    }

    #[test]
    fn a_copy_loses_what_the_original_lacks_and_gets_what_differs() {
        let original = [
            attribute("user.a", "1"),
            attribute("user.b", "2"),
            attribute("trusted.c", "3"),
            attribute("system.other", "4"),
        ];
        let copy = [
            attribute("user.a", "1"),
            attribute("user.b", "old"),
            attribute("system.posix_acl_access", "x"),
            attribute("security.selinux", "label"),
        ];
        let names = |as_root| {
            let difference = Difference::of(&original, &copy, as_root);
            let set: Vec<&[u8]> = difference.set.iter().map(|a| &a.0[..]).collect();
            (set, difference.remove)
        };
        let gone: Vec<&[u8]> = vec![b"system.posix_acl_access"];
        assert_eq!(
            names(true),
            (vec![&b"user.b"[..], b"trusted.c"], gone.clone())
        );
        assert_eq!(names(false), (vec![&b"user.b"[..]], gone));
        assert!(Difference::of(&original, &original, true).is_empty());
    }
}
