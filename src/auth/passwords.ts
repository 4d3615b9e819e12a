import { randomBytes, type ScryptOptions, scrypt, timingSafeEqual } from 'node:crypto'
import type { Piscina } from 'piscina'
import { RegistryError } from '../oci/errors.js'
import { Turnstile } from './turnstile.js'

/** Memory-hard (16 MiB) and slow (some 150 ms of one core), as OWASP's table for scrypt has it. */
const cost = { ln: 14, r: 8, p: 5 } as const
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

/** What a thread is handed to compare with a bcrypt hash. */
export interface BcryptRequest {
  readonly password: string
  readonly hash: string
}

/** Hashes and checks passwords, never on the event loop. */
export class Passwords {
  readonly #turnstile = new Turnstile(atOnce, waitingRoom)
  #bcrypt: Promise<Piscina<BcryptRequest, boolean>> | undefined
  /** Compared with when there is no such user: the answer must take as long (reliability S10). */
  readonly #decoy = encode(randomBytes(saltLength), randomBytes(keyLength))

  /** @throws RegistryError DENIED for a password that nobody can have */
  async hash(password: string): Promise<string> {
    if (!isPassword(password))
      throw new RegistryError('DENIED', `a password has 1 to ${longestPassword} bytes`)
    const salt = randomBytes(saltLength)
    return encode(salt, await derive(password, salt, cost))
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
        this.#bcrypt ??= startBcrypt()
        const threads = await this.#bcrypt
        // The decoy's time beside it: an imported user must not be told from an unknown one (reliability S10).
        const [isRight] = await Promise.all([
          threads.run({ password, hash }),
          compareScrypt(password, this.#decoy),
        ])
        return { isRight, isOutdated: true }
      }
      const isRight = await compareScrypt(password, hash ?? this.#decoy)
      return { isRight: isRight && hash !== undefined, isOutdated: false }
    })
  }

  async close(): Promise<void> {
    await (await this.#bcrypt)?.close()
  }
}

/** bcrypt is JavaScript: it runs on a thread, which starts with the first old hash and goes when idle. */
async function startBcrypt(): Promise<Piscina<BcryptRequest, boolean>> {
  const { Piscina } = await import('piscina')
  return new Piscina({
    filename: new URL('./bcrypt-thread.js', import.meta.url).href,
    minThreads: 0,
    maxThreads: 1,
    idleTimeout: 5000,
  })
}

/** Whether the text can be a password at all: NUL would end it early in other programs. */
export function isPassword(text: string): boolean {
  return text.length > 0 && !text.includes('\0') && Buffer.byteLength(text) <= longestPassword
}

/** Whether the text is a bcrypt hash, as htpasswd files have it. */
export function isBcryptHash(text: string): boolean {
  return /^\$2[aby]\$(?:0[4-9]|1[0-7])\$[./A-Za-z0-9]{53}$/.test(text)
}

function encode(salt: Buffer, key: Buffer): string {
  const { ln, r, p } = cost
  return `$scrypt$ln=${ln},r=${r},p=${p}$${salt.toString('base64url')}$${key.toString('base64url')}`
}

const encoded = /^\$scrypt\$ln=(\d{1,2}),r=(\d{1,2}),p=(\d{1,2})\$([\w-]{1,64})\$([\w-]{43})$/

async function compareScrypt(password: string, hash: string): Promise<boolean> {
  const [, ln, r, p, salt, key] = encoded.exec(hash) ?? []
  if (salt === undefined || key === undefined) return false
  const expected = Buffer.from(key, 'base64url')
  const params = { ln: Number(ln), r: Number(r), p: Number(p) }
  const actual = await derive(password, Buffer.from(salt, 'base64url'), params)
  return timingSafeEqual(actual, expected)
}

function derive(
  password: string,
  salt: Buffer,
  params: { ln: number; r: number; p: number },
): Promise<Buffer> {
  const { ln, r, p } = params
  const options: ScryptOptions = { N: 2 ** ln, r, p, maxmem: 256 * 2 ** ln * r }
  return new Promise((resolve, reject) => {
    scrypt(password.normalize('NFC'), salt, keyLength, options, (error, key) =>
      error ? reject(error) : resolve(key),
    )
  })
}
