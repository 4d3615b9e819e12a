import type { Caller } from '../auth/access.js'
import type { Visible } from '../registry/manifests.js'

/** The repositories that lists show to a caller: those that he may pull from. */
export function visibleTo(caller: Caller): Visible {
  return { prefixes: caller.reach(), includes: (name) => caller.maySee(name) }
}
