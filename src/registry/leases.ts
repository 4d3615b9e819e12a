/** The part of a lease by which it may end early: it is renewed when it is older than that, not at each use. */
const slackShare = 10

/**
 * How old a lease may be, in milliseconds, before a use renews it. Collectors wait so much longer: whoever
 * relied on something has the whole of the grace.
 */
export function leaseSlack(grace: number): number {
  return Math.ceil(grace / slackShare)
}

/**
 * A clock that does not jump ahead: milliseconds since 1970 as of the start of the process, and what has passed
 * since. A system clock that is set back counts at once; one that is set ahead by years must not end all leases.
 */
export function steadyClock(): () => number {
  const start = Date.now() - performance.now()
  return () => Math.min(Date.now(), start + performance.now())
}
