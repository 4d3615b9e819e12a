import { RegistryError } from '../oci/errors.js'
import { LeastRecentlyUsed } from './lru.js'

/** Wrong logins that an address has free, and how fast it gets new ones. */
const burst = 30
const perSecond = 0.5

/** A wrong login for an account that is under attack is answered later: up to this many milliseconds. */
const longestPenalty = 2000
const penaltyStep = 100
/** Wrong logins for one account until the penalty begins. */
const freeFailures = 5
/** Milliseconds without another wrong login after which those before are forgotten, of accounts and of addresses. */
const forgetAfter = 300_000

/** Addresses and accounts that are remembered. */
const mostEntries = 10_000

/** Answers that may be held back at once. */
const mostHeldBack = 500

interface Bucket {
  level: number
  at: number
}

/** Wrong logins in a row, and when the last one was. */
interface Failures {
  readonly count: number
  readonly at: number
}

/**
 * Slows guessing down without locking anybody out: an address that guesses is sent away before its guesses cost
 * anything, and an account that is guessed at answers wrong passwords slowly. A right password is never delayed
 * by what others do, and an address that has logged in as somebody keeps a bucket of its own for him.
 *
 * This is memory of one process on purpose: what is forgotten with it costs an attacker's guesses a fresh start.
 */
export class Throttle {
  readonly #buckets = new LeastRecentlyUsed<string, Bucket>(mostEntries)
  /** By account, and by the key of a bucket. */
  readonly #failures = new LeastRecentlyUsed<string, Failures>(mostEntries)
  readonly #guesses = new LeastRecentlyUsed<string, Failures>(mostEntries)
  readonly #known = new LeastRecentlyUsed<string, true>(mostEntries)
  #heldBack = 0

  /**
   * @returns how much this address has guessed of late: its weight against others who wait. One wrong password is
   * more than any number of attempts, which also those make who were only sent away
   * @throws RegistryError TOOMANYREQUESTS when that is too much
   */
  admit(address: string, account: string): number {
    const bucket = this.#bucket(address, account)
    if (bucket.level >= 1) {
      bucket.level--
      return burst - bucket.level + burst * countOf(this.#guesses.get(this.#keyOf(address, account)))
    }
    throw new RegistryError('TOOMANYREQUESTS', 'too many wrong logins from this address: try again later', {
      retryAfter: Math.ceil((1 - bucket.level) / perSecond),
    })
  }

  /** A right password gives the attempt back and makes the pair known. */
  succeeded(address: string, account: string): void {
    const bucket = this.#bucket(address, account)
    bucket.level = Math.min(burst, bucket.level + 1)
    this.#known.set(pair(address, account), true)
  }

  /** Resolves when the wrong password may be answered. */
  async failed(address: string, account: string): Promise<void> {
    this.#addTo(this.#guesses, this.#keyOf(address, account))
    const count = this.#addTo(this.#failures, account)
    const penalty = Math.min(longestPenalty, penaltyStep * Math.max(0, count - freeFailures))
    if (penalty === 0 || this.#heldBack >= mostHeldBack) return
    this.#heldBack++
    await new Promise((resolve) => setTimeout(resolve, penalty))
    this.#heldBack--
  }

  #addTo(failures: LeastRecentlyUsed<string, Failures>, key: string): number {
    const count = countOf(failures.get(key)) + 1
    failures.set(key, { count, at: performance.now() })
    return count
  }

  #keyOf(address: string, account: string): string {
    const own = pair(address, account)
    return this.#known.get(own) === true ? own : networkOf(address)
  }

  #bucket(address: string, account: string): Bucket {
    const key = this.#keyOf(address, account)
    const now = performance.now()
    const bucket = this.#buckets.get(key) ?? { level: burst, at: now }
    bucket.level = Math.min(burst, bucket.level + ((now - bucket.at) / 1000) * perSecond)
    bucket.at = now
    this.#buckets.set(key, bucket)
    return bucket
  }
}

function countOf(failures: Failures | undefined): number {
  return failures === undefined || performance.now() - failures.at > forgetAfter ? 0 : failures.count
}

function pair(address: string, account: string): string {
  return `${networkOf(address)} ${account}`
}

/** An IPv6 address counts as its /64: whoever has one address of it has them all. */
export function networkOf(address: string): string {
  if (!address.includes(':')) return address
  if (address.includes('.')) return address.slice(address.lastIndexOf(':') + 1) // IPv4 inside IPv6
  const [head = '', tail] = address.split('::', 2)
  const before = head.split(':').filter((part) => part !== '')
  const after = tail === undefined ? [] : tail.split(':').filter((part) => part !== '')
  const zeros = Array.from({ length: Math.max(0, 8 - before.length - after.length) }, () => '0')
  return [...before, ...zeros, ...after].slice(0, 4).join(':')
}
