import { randomBytes, timingSafeEqual } from 'node:crypto'
import type { Piscina } from 'piscina'
import { RegistryError } from '../oci/errors.js'
import type { HashRequest } from './hash-thread.js'
import { Turnstile } from './turnstile.js'

type Cost = Extract<HashRequest, { kind: 'scrypt' }>['cost']

/** Memory-hard (8 MiB) and slow (some 150 ms of one core), as OWASP's table for scrypt has it. */
const cost: Cost = { ln: 13, r: 8, p: 10 }
const keyLength = 32
const saltLength = 16

/** Hashes at once in one process, and how many may wait: a flood of guesses must not take the machine. */
const atOnce = 1
const waitingRoom = 32

/** Longest password in bytes. Longer text is refused before it costs anything. */
const longestPassword = 1024

/** What became of a password that somebody typed. */
export interface Verdict {
  readonly isRight: boolean
  /** The stored hash is of an older kind: store a new one while the password is at hand. */
  readonly isOutdated: boolean
}

/**
 * Hashes and checks passwords on a thread of its own, which starts when it is needed and goes when it is not. Not on
 * Node's pool: each of its threads would keep the memory of a hash, and hashing could not give way to pulls there.
 */
export class Passwords {
  readonly #turnstile = new Turnstile(atOnce, waitingRoom)
  #threads: Promise<Piscina<HashRequest, Uint8Array | boolean>> | undefined
  /** Compared with when there is no such user: the answer must take as long (reliability S10). */
  readonly #decoy = encode(randomBytes(saltLength), randomBytes(keyLength))

  /** @throws RegistryError DENIED for a password that nobody can have */
  async hash(password: string): Promise<string> {
    if (!isPassword(password))
      throw new RegistryError('DENIED', `a password has 1 to ${longestPassword} bytes`)
    const salt = randomBytes(saltLength)
    return encode(salt, await this.#derive(password, salt, cost))
  }

  /**
   * Compares a password with a stored hash; without one the work is the same and the answer no.
   * @param weight of who asks, against others who wait: see Turnstile
   * @throws RegistryError TOOMANYREQUESTS when too many wait
   */
  async verify(password: string, hash: string | undefined, weight: number): Promise<Verdict> {
    if (!isPassword(password)) return { isRight: false, isOutdated: false }
    return this.#turnstile.run(weight, async () => {
      if (hash?.startsWith('$2')) {
        // The decoy's time beside it: an imported user must not be told from an unknown one (reliability S10).
        const [isRight] = await Promise.all([
          this.#run({ kind: 'bcrypt', password, hash }),
          this.#compareScrypt(password, this.#decoy),
        ])
        return { isRight: isRight === true, isOutdated: true }
      }
      const isRight = await this.#compareScrypt(password, hash ?? this.#decoy)
      return { isRight: isRight && hash !== undefined, isOutdated: false }
    })
  }

  async close(): Promise<void> {
    await (await this.#threads)?.close()
  }

  async #compareScrypt(password: string, hash: string): Promise<boolean> {
    const [, ln, r, p, salt, key] = encoded.exec(hash) ?? []
    if (salt === undefined || key === undefined) return false
    const params = { ln: Number(ln), r: Number(r), p: Number(p) }
    const actual = await this.#derive(password, Buffer.from(salt, 'base64url'), params)
    return timingSafeEqual(actual, Buffer.from(key, 'base64url'))
  }

  async #derive(text: string, salt: Uint8Array, params: Cost): Promise<Uint8Array> {
    const password = text.normalize('NFC')
    const key = await this.#run({ kind: 'scrypt', password, salt, cost: params, length: keyLength })
    if (!(key instanceof Uint8Array)) throw new Error('no key was derived')
    return key
  }

  async #run(request: HashRequest): Promise<Uint8Array | boolean> {
    this.#threads ??= startThreads()
    return (await this.#threads).run(request)
  }
}

/** Two, so that bcrypt and the decoy beside it take no longer than the decoy; the second hardly ever runs. */
async function startThreads(): Promise<Piscina<HashRequest, Uint8Array | boolean>> {
  const { Piscina } = await import('piscina')
  return new Piscina({
    filename: new URL('./hash-thread.js', import.meta.url).href,
    minThreads: 0,
    maxThreads: 2,
    idleTimeout: 30_000,
  })
}

/** Whether the text can be a password at all: NUL would end it early in other programs. */
export function isPassword(text: string): boolean {
  return text.length > 0 && !text.includes('\0') && Buffer.byteLength(text) <= longestPassword
}

/** Fewest characters of a password that somebody chooses now (NIST SP 800-63B, 5.1.1.1); older ones stay good. */
export const shortestPassword = 8

/** Whether a new password has too few characters: as people count them, not in bytes. */
export function isTooShort(text: string): boolean {
  return [...text.normalize('NFC')].length < shortestPassword
}

/** Whether the text is a bcrypt hash, as htpasswd files have it. */
export function isBcryptHash(text: string): boolean {
  return /^\$2[aby]\$(?:0[4-9]|1[0-7])\$[./A-Za-z0-9]{53}$/.test(text)
}

function encode(salt: Buffer, key: Uint8Array): string {
  const { ln, r, p } = cost
  return `$scrypt$ln=${ln},r=${r},p=${p}$${salt.toString('base64url')}$${Buffer.from(key).toString('base64url')}`
}

const encoded = /^\$scrypt\$ln=(\d{1,2}),r=(\d{1,2}),p=(\d{1,2})\$([\w-]{1,64})\$([\w-]{43})$/
