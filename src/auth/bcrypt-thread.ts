import bcrypt from 'bcryptjs'
import type { BcryptRequest } from './passwords.js'

/** bcrypt reads 72 bytes and no more: two longer passwords that begin alike would be one (reliability S11). */
const bcryptReads = 72

/** Runs on a thread of its own: see Passwords. */
export default function compare({ password, hash }: BcryptRequest): boolean {
  return Buffer.byteLength(password) <= bcryptReads && bcrypt.compareSync(password, hash)
}
