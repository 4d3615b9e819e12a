import { X509Certificate } from 'node:crypto'
import { readFile } from 'node:fs/promises'
import type { Logger } from 'pino'
import type { Config } from '../../config/schema.js'

const day = 86_400_000

/** A certificate ends soon when less than this is left of it, or than this share of its whole time. */
const soon = 14 * day
const soonShare = 1 / 4

/** What is wrong with a certificate's time. */
export interface CertificateTrouble {
  /** Whether clients refuse it now. */
  readonly isRefused: boolean
  readonly sentence: string
}

/**
 * What an operator must know of a certificate's time; undefined when all is well.
 * @param pem the certificate, with its chain or without
 * @param now milliseconds since 1970
 * @throws the system's error when it is no certificate
 */
export function certificateTrouble(pem: string, now: number): CertificateTrouble | undefined {
  const { validFrom, validTo } = new X509Certificate(pem)
  const from = Date.parse(validFrom)
  const to = Date.parse(validTo)
  if (now > to)
    return { isRefused: true, sentence: `expired on ${validTo}: clients refuse it; replace the file` }
  if (now < from) {
    return {
      isRefused: true,
      sentence: `is not valid before ${validFrom}: clients refuse it; look at the clock`,
    }
  }
  if (to - now > Math.min(soon, (to - from) * soonShare)) return undefined
  return { isRefused: false, sentence: `expires on ${validTo}: replace the file in time, without a restart` }
}

/**
 * Tells the log of a certificate that is not valid, or not for long, at once and daily until the returned function is
 * called.
 * @param interval milliseconds
 */
export function watchCertificateTime(
  config: Config,
  logger: Logger,
  interval: number = day,
): () => Promise<void> {
  const { tls } = config
  if (tls === undefined) return async () => undefined
  const look = async () => {
    try {
      const trouble = certificateTrouble(await readFile(tls.certificate, 'utf8'), Date.now())
      if (trouble === undefined) return
      const level = trouble.isRefused ? 'error' : 'warn'
      logger[level]({ file: tls.certificate }, `the certificate ${trouble.sentence}`)
    } catch (error) {
      logger.error({ err: error }, 'the certificate cannot be read')
    }
  }
  let running = look()
  const timer = setInterval(() => {
    running = running.then(look)
  }, interval)
  return async () => {
    clearInterval(timer)
    await running
  }
}
