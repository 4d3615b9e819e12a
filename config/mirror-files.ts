import { X509Certificate } from 'node:crypto'
import { resolve } from 'node:path'
import { isPlainObject } from './mirror-values.js'
import { troubleOfPassword } from './secret-files.js'
import { readSmallFile } from './small-file.js'
import { show } from './words.js'

/** A setting of a mirror that names a file. */
export type FileSetting = 'passwordFile' | 'dockerConfig' | 'ca'

const kinds: Readonly<
  Record<FileSetting, { troubleOf: (content: Buffer) => string | undefined; advice: string }>
> = {
  passwordFile: { troubleOf: troubleOfPassword, advice: 'name a file with the password on its only line' },
  dockerConfig: { troubleOf: troubleOfDockerConfig, advice: 'name a config.json of Docker' },
  ca: { troubleOf: troubleOfCertificates, advice: 'name a PEM file with certificates' },
}

/** What is wrong with a file that a mirror names; continues "<setting> ", and never shows what is in the file. */
export function troubleOfFile(setting: FileSetting, file: string): string | undefined {
  const { troubleOf, advice } = kinds[setting]
  const { content, trouble } = readSmallFile(resolve(file))
  const found = content === undefined ? trouble : troubleOf(content)
  return found === undefined ? undefined : `is ${show(file)}, ${found}: ${advice}.`
}

function troubleOfDockerConfig(content: Buffer): string | undefined {
  try {
    const value: unknown = JSON.parse(content.toString('utf8'))
    return isPlainObject(value) ? undefined : 'which holds no JSON object'
  } catch {
    return 'which is not JSON'
  }
}

function troubleOfCertificates(content: Buffer): string | undefined {
  const blocks = content.toString('latin1').match(/-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----/gs)
  if (blocks === null) return 'which holds no certificate'
  return blocks.every(isCertificate) ? undefined : 'which holds a broken certificate'
}

function isCertificate(pem: string): boolean {
  try {
    return new X509Certificate(pem).raw.length > 0
  } catch {
    return false
  }
}
