import { scryptSync } from 'node:crypto'
import { setPriority } from 'node:os'
import bcrypt from 'bcryptjs'

/** What the thread is handed: a key to derive with scrypt, or a password to compare with a bcrypt hash. */
export type HashRequest =
  | {
      readonly kind: 'scrypt'
      readonly password: string
      readonly salt: Uint8Array
      readonly cost: { readonly ln: number; readonly r: number; readonly p: number }
      readonly length: number
    }
  | { readonly kind: 'bcrypt'; readonly password: string; readonly hash: string }

/** bcrypt reads 72 bytes and no more: two longer passwords that begin alike would be one (reliability S11). */
const bcryptReads = 72

/** As `nice` counts: those who are logged in go first when the cores are busy (reliability S09). */
const niceness = 10

// Linux counts this for the thread alone; elsewhere the whole process would give way.
if (process.platform === 'linux') giveWay()

function giveWay(): void {
  try {
    setPriority(niceness)
  } catch {
    // Forbidden here: then logins and pulls share the cores evenly.
  }
}

/** Runs on a thread of its own: see Passwords. */
export default function run(request: HashRequest): Uint8Array | boolean {
  if (request.kind === 'bcrypt') {
    const { password, hash } = request
    return Buffer.byteLength(password) <= bcryptReads && bcrypt.compareSync(password, hash)
  }
  const { password, salt, cost, length } = request
  const { ln, r, p } = cost
  return scryptSync(password, salt, length, { N: 2 ** ln, r, p, maxmem: 256 * 2 ** ln * r })
}
