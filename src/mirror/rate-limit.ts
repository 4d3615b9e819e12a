import { steadyNow } from './breaker.js'
import type { RateLimit } from './upstream.js'

/** How long a 429 without Retry-After is obeyed, and the longest that any is: Docker Hub counts six hours. */
const defaultPause = 30_000
const longestPause = 6 * 3600 * 1000

/** Header fields of a reply, as undici gives them. */
export type Headers = Readonly<Record<string, string | string[] | undefined>>

/** The value of a header that must stand once; undefined when it is missing or stands several times. */
export function single(headers: Headers, name: string): string | undefined {
  const value = headers[name]
  return typeof value === 'string' ? value : undefined
}

/**
 * Milliseconds that a Retry-After asks for, in seconds or as an HTTP date; undefined when there is none that can be
 * read. Never more than six hours.
 */
export function retryAfterOf(headers: Headers): number | undefined {
  const text = single(headers, 'retry-after')?.trim()
  if (text === undefined || text === '' || text.length > 64) return undefined
  const pause = /^\d+$/.test(text) ? Number(text) * 1000 : Date.parse(text) - Date.now()
  return Number.isNaN(pause) ? undefined : Math.min(longestPause, Math.max(0, pause))
}

/** What an upstream says of its limits (protocol RL-02), and when it may be asked again. */
export class RateLimits {
  #last: RateLimit | undefined
  #pausedUntil = 0

  /** What it said last. */
  get last(): RateLimit | undefined {
    return this.#last
  }

  /** Milliseconds for which nothing may be asked; 0 when it may. */
  get pause(): number {
    return Math.max(0, this.#pausedUntil - steadyNow())
  }

  /** Until when that is, in milliseconds since 1970; undefined when it may be asked. */
  get pausedUntil(): number | undefined {
    return this.pause === 0 ? undefined : Math.ceil(this.#pausedUntil)
  }

  /** Reads `RateLimit-Limit` and `RateLimit-Remaining`: a number, parameters such as `;w=21600` behind it. */
  read(headers: Headers): void {
    const limit = leadingNumber(single(headers, 'ratelimit-limit'))
    const remaining = leadingNumber(single(headers, 'ratelimit-remaining'))
    if (limit !== undefined || remaining !== undefined) this.#last = { limit, remaining }
  }

  /**
   * It answered 429: nothing is asked until it said.
   * @returns milliseconds until then
   */
  exceeded(headers: Headers): number {
    this.#pausedUntil = Math.max(this.#pausedUntil, steadyNow() + (retryAfterOf(headers) ?? defaultPause))
    return this.pause
  }
}

function leadingNumber(text: string | undefined): number | undefined {
  const digits = /^\s*(\d{1,15})\s*(?:[;,]|$)/.exec(text ?? '')?.[1]
  return digits === undefined ? undefined : Number(digits)
}
