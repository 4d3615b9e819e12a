import { createSecureContext, type SecureContextOptions } from 'node:tls'
import type { Written } from './findings.js'
import { readSmallFile } from './small-file.js'
import { show } from './words.js'

const certificateAdvice = 'name a PEM file with the certificate and its chain'
const keyAdvice = 'name a PEM file with the private key, without a passphrase'

/** What is wrong with the files of TLS, each by itself and the two together; one that is not set is not judged. */
export function faultsOfTls(certificate: Written | undefined, key: Written | undefined): readonly string[] {
  const faults: string[] = []
  const read = (written: Written, option: 'cert' | 'key', unusable: string, advice: string) => {
    const file = readSmallFile(String(written.value))
    if (file.content !== undefined && isAccepted({ [option]: file.content })) return file.content
    faults.push(`${written.place} is ${show(written.value)}, ${file.trouble ?? unusable}: ${advice}.`)
    return undefined
  }
  const cert = certificate && read(certificate, 'cert', 'which holds no certificate', certificateAdvice)
  const secret = key && read(key, 'key', 'which holds no usable private key', keyAdvice)
  if (cert !== undefined && secret !== undefined && !isAccepted({ cert, key: secret })) {
    const trouble = `which does not belong to the certificate in ${show(certificate?.value)}`
    faults.push(`${key?.place} is ${show(key?.value)}, ${trouble}: name the key that it was made with.`)
  }
  return faults
}

function isAccepted(options: SecureContextOptions): boolean {
  try {
    createSecureContext(options)
    return true
  } catch {
    return false
  }
}
