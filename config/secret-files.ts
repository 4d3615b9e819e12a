import { createPrivateKey } from 'node:crypto'
import type { Written } from './findings.js'
import { readSmallFile } from './small-file.js'
import { show } from './words.js'

/** Longest password, in bytes. */
const longestPassword = 1024

/** What is wrong with the file of `tokens.keyFile`. */
export function faultsOfKeyFile(keyFile: Written | undefined): readonly string[] {
  return faultsOf(keyFile, troubleOfKey, 'name a PEM file with an unencrypted Ed25519 private key')
}

/** What is wrong with the file of `admin.passwordFile`. */
export function faultsOfPasswordFile(passwordFile: Written | undefined): readonly string[] {
  return faultsOf(passwordFile, troubleOfPassword, 'name a file with the password on its only line')
}

/** Sentences never show what is in these files. */
function faultsOf(
  written: Written | undefined,
  troubleOf: (content: Buffer) => string | undefined,
  advice: string,
): readonly string[] {
  if (written === undefined) return []
  const file = readSmallFile(String(written.value))
  const trouble = file.content === undefined ? file.trouble : troubleOf(file.content)
  return trouble === undefined ? [] : [`${written.place} is ${show(written.value)}, ${trouble}: ${advice}.`]
}

function troubleOfKey(content: Buffer): string | undefined {
  try {
    const { asymmetricKeyType } = createPrivateKey(content)
    return asymmetricKeyType === 'ed25519'
      ? undefined
      : `which holds a key of another kind (${asymmetricKeyType})`
  } catch {
    return 'which holds no usable private key'
  }
}

/** What is wrong with the content of a file that holds a password; continues "<file>, …". */
export function troubleOfPassword(content: Buffer): string | undefined {
  const text = content.toString('utf8').replace(/\r?\n$/, '')
  if (text === '') return 'which is empty'
  if (/[\r\n]/.test(text)) return 'which has more than one line'
  if (text.includes('\0') || !Buffer.from(text).equals(content.subarray(0, Buffer.byteLength(text)))) {
    return 'which is not UTF-8 text'
  }
  return Buffer.byteLength(text) > longestPassword
    ? `which has more than ${longestPassword} bytes`
    : undefined
}
