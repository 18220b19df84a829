"""The ledger in Korean: every claim and correction, the verdicts, and the page's fixed phrases.

Most sources of the claims are Korean study notes: the terms are theirs and those of Korean
textbooks. Claims are looked up by id, verdicts and phrases by their English text. If an English
sentence changes, change its translation, too.
"""

from typing import NamedTuple

from experiments.stats import rules


class Translation(NamedTuple):
    """The Korean translation of a claim.

    - text: the claim as its authors make it.
    - correction: what to say instead or in addition; empty if the English one is.
    """

    text: str
    correction: str = ""


CLAIMS: dict[str, Translation] = {
    # mnist_mlp
    "fig1-faster": Translation(
        "MNIST에서 배치 정규화를 적용한 신경망은 훨씬 빠르게 학습하고 최종 결과도 더 좋다.",
        "학습률이 적절하면 최종 정확도의 차이는 1%p 이하이다. 이득은 속도에 있다.",
    ),
    "fig1-stable-inputs": Translation(
        "BN을 적용하면 시그모이드에 들어가는 입력의 분포가 학습 내내 유지되지만, 적용하지 않으면 "
        "흔들린다.",
    ),
    # identities
    "bias-redundant": Translation(
        "BN 앞의 편향은 효과가 없다. 평균을 뺄 때 편향도 함께 빠지고, 그 역할은 β가 대신한다.",
    ),
    "epsilon": Translation("ε은 0으로 나누는 것을 막는다."),
    "moving-average": Translation(
        "100, 110, 130, 120, 140의 길이 2 이동 평균은 100, 105, 120, 125, 130이다.",
    ),
    "bessel": Translation(
        "배치 분산의 평균에 m/(m-1)을 곱하면 분산을 편향 없이 추정할 수 있다.",
        "보정 계수는 m = 2, 5, 32, 60일 때 각각 2, 1.25, 1.032, 1.017이다.",
    ),
    "convolution": Translation(
        "합성곱에서는 n개의 특징 맵마다 γ와 β가 하나씩 있고, 통계량은 m × p × q개의 값에 대해 "
        "구한다.",
    ),
    "scale-invariance": Translation(
        "가중치의 스케일은 영향을 주지 않는다. BN((aW)u) = BN(Wu)이며, a가 커져도 기울기는 커지지 "
        "않는다.",
    ),
    "extra-layer": Translation(
        "γ와 β가 있는 BN은 또 하나의 층이며, 다른 층과 마찬가지로 역전파로 학습된다.",
    ),
    "identity-map": Translation(
        "γ를 표준편차로, β를 평균으로 두면 BN은 정규화하기 전의 입력을 그대로 되돌려 준다.",
        "정확히 그렇게 되는 것은 γ = √(var + ε)일 때뿐이다. 표준편차를 그대로 쓰면 최대 ε / "
        "(2 var)의 오차가 생긴다.",
    ),
    "products": Translation(
        "1보다 작은 값이 거듭 곱해지면 소실되고, 1보다 큰 값이 거듭 곱해지면 폭발한다.",
    ),
    "sigmoid-slope": Translation(
        "시그모이드의 미분값은 0에서 최댓값 1/4을 가지며, 층을 몇 개만 거쳐도 거의 사라진다.",
    ),
    "glorot-he": Translation(
        "Glorot 초기화는 분산이 2/(fan in + fan out)인 가중치를, He 초기화는 분산이 2/fan in인 "
        "가중치를 뽑는다.",
    ),
    "xavier-not-glorot": Translation(
        "Xavier 초기화(정규분포)와 Glorot 초기화(균등분포)는 서로 다른 기법이다.",
        "둘은 Xavier Glorot의 이름을 딴 하나의 기법이며, 분산이 같은 정규분포 방식과 균등분포 "
        "방식이 있다.",
    ),
    "divide-by-batch": Translation(
        "B로 나누면 미니배치의 기울기가 전체 데이터의 기울기를 대표한다. 미니배치 기울기들의 "
        "평균이 곧 전체 데이터의 기울기이다.",
        "BN을 쓰면 그렇지 않다. 한 샘플의 손실이 같은 배치에 든 다른 샘플에 따라 달라지기 "
        "때문이다.",
    ),
    # gradients
    "vanishing": Translation(
        "시그모이드와 tanh는 기울기 소실을 일으키며, 층이 깊을수록 더 심해진다.",
    ),
    "relu-and-initialization": Translation(
        "ReLU를 쓰고 가중치를 신중하게 초기화하면 기울기가 유지된다.",
        "ReLU에는 He 초기화의 분산이 필요하다. Xavier 초기화의 분산을 쓰면 기울기가 층마다 "
        "0.707배로 줄어든다.",
    ),
    "exploding": Translation("가중치가 너무 크면 반대로 기울기가 폭발할 수 있다."),
    "bn-keeps-gradients": Translation(
        "BN은 기울기 소실과 기울기 폭발을 막는다.",
        "가중치의 스케일이 어떻든 그렇다. 다만 ReLU를 쓰면 초기화 시점의 기울기는 층마다 "
        "21%씩 커진다.",
    ),
    "bn-relu-growth": Translation(
        "초기화 시점에 ReLU와 BN을 함께 쓰면 기울기의 제곱은 층마다 π/(π-1)배로 커진다(Yang 등, "
        "2019).",
    ),
    "early-layers": Translation("앞쪽 층이 가장 적게 학습된다."),
    "chain-rule": Translation(
        "하류 기울기(downstream gradient)는 상류 기울기(upstream gradient)에 국소 기울기(local "
        "gradient)를 곱한 값이다.",
    ),
    "relu-slope": Translation(
        "ReLU의 미분값은 입력이 아무리 커도 1이므로 0이 되지 않는다.",
        "원점의 오른쪽에서는 1이지만 왼쪽에서는 0이다.",
    ),
    "dying-relu": Translation(
        "ReLU에서는 뉴런이 죽어 회복되지 않으며, Leaky ReLU가 이를 보완한다.",
    ),
    "residual": Translation("입력을 더해 x + F(x)로 만들면 깊은 신경망에서도 기울기가 유지된다."),
    "variance-kept": Translation("초기 가중치를 적절히 설정하면 층을 지나도 분산이 유지된다."),
    "clipping": Translation("기울기 클리핑은 기울기의 노름을 제한하여 기울기 폭발을 막는다."),
    # recurrent
    "rnn-forgets": Translation("순환 신경망(RNN)은 이전 상태의 영향력을 잃어버린다."),
    "lstm-preserves": Translation("LSTM은 게이트와 메모리 셀을 이용해 장기 의존관계를 유지한다."),
    "forget-bias": Translation(
        "LSTM이 기억을 얼마나 유지하는지는 망각 게이트의 편향에 달려 있다. 남는 비율은 f의 "
        "T제곱이다.",
    ),
    "clipping-recurrent": Translation(
        "클리핑은 가중치가 큰 순환 신경망이 발산하지 않게 한다.",
        "quick 프리셋에서 클리핑을 적용한 실행 가운데 오차가 유한하지 않은 것은 없다. "
        "발산으로 집계된 것은 오차가 상한을 넘은 채 끝난 실행이다.",
    ),
    # whitening
    "whitening-decorrelates": Translation(
        "백색화(whitening)는 특징 사이의 상관을 없애고, 각 특징의 분산을 1로 만든다.",
        "BN은 이 가운데 두 번째만, 훨씬 적은 비용으로 한다. 따라서 BN은 백색화가 아니다.",
    ),
    "whitening-costly": Translation(
        "백색화는 공분산 행렬과 그 역제곱근을 구해야 하므로 계산량이 많다.",
    ),
    "whitening-singular": Translation("배치의 샘플 수가 특징 수보다 적으면 백색화는 실패한다."),
    "bias-grows": Translation(
        "정규화를 경사 하강 단계 밖에서 하면 손실은 그대로인데 편향은 한없이 커진다.",
    ),
    "scale-grows": Translation("스케일까지 정규화하면 이 문제는 더 심해진다."),
    "normalized-inputs": Translation(
        "입력을 정규화하면 학습이 더 빨라지고 지역 최적점에 덜 빠진다.",
        "지역 최적점에 빠졌다는 판정은 허용 폭에 달려 있다. 스텝 수가 같으면 정규화하지 않은 "
        "입력의 최종 결과가 더 나쁘지만, 그것이 지역 최적점을 증명하지는 않는다.",
    ),
    "whitened-faster": Translation("입력을 백색화하면 한층 더 빨리 수렴한다."),
    # titanic
    "titanic-accuracy": Translation(
        "타이타닉 데이터에서 객실 등급, 요금, 나이를 입력으로 쓸 때 BN은 정확도를 69%에서 "
        "71%로 높인다.",
        "입력의 스케일을 맞추는 것도 그만큼 또는 그보다 더 효과가 있다. 179명을 떼어 낸 분할 "
        "하나의 표준오차는 3.4%p이다.",
    ),
    "titanic-steadier": Translation("BN을 적용하면 에폭이 지나는 동안 정확도가 더 안정적이다."),
    "titanic-epochs": Translation("에폭 수를 늘리면 결과가 더 좋아질 것이다."),
    # learning_rate
    "plateau": Translation(
        "기울기가 정체되면 오차는 낮아지지 않고 그 자리에 머문다.",
        "신경망이 정체 구간을 벗어나는 시점은 시드마다 수천 스텝씩 다르다. 시드 세 개로는 말할 수 "
        "없다.",
    ),
    "small-rate": Translation("작은 학습률은 기울기 폭발에 대한 대책이다."),
    "higher-rate": Translation("BN을 적용하면 더 높은 학습률을 쓸 수 있다."),
    "less-care": Translation("BN을 적용하면 가중치 초기화와 학습률에 덜 신경 써도 된다."),
    "faster": Translation(
        "BN은 학습 속도를 높인다.",
        "저마다 가장 좋은 학습률로 비교하면 결과는 BN의 학습률로 무엇이 선택되느냐에 달려 "
        "있다. 이미지를 달리 추출했을 때는 분명하지 않았다.",
    ),
    "low-rate-equal": Translation(
        "같은 낮은 학습률에서는 BN을 적용해도 최종 결과가 더 좋지 않다. BN의 이득은 높은 "
        "학습률에서 나온다(Bjorck 등, 2018).",
    ),
    "small-rates-slow": Translation("학습률이 작으면 학습이 느려진다."),
    "slower-decay": Translation(
        "BN을 적용하면 학습률을 더 천천히 감소시켜도 된다.",
        "논문은 학습률을 6배 더 빠르게 감소시킨다. 신경망이 더 빨리 학습하기 때문이다.",
    ),
    "zero-initialization": Translation(
        "초기 가중치를 0으로 두면 은닉 뉴런들이 서로 똑같은 채로 남고, 신경망은 사실상 선형이 "
        "된다.",
    ),
    # regularization
    "bn-regularizes": Translation(
        "BN에는 규제(regularization) 효과가 있다.",
        "이 규모에서는 입증되지 않는다. 모든 신경망이 학습 이미지를 다 맞히면 두 수치는 결국 "
        "같은 것이 된다. 처음에 쓴 더 성긴 학습률 격자에서는 성립했는데, 그 격자에는 BN이 "
        "없는 신경망의 최적값에 가까운 학습률이 없었기 때문이다.",
    ),
    "dropout-unneeded": Translation(
        "BN을 적용하면 드롭아웃은 필요 없다.",
        "논문은 드롭아웃을 제거하거나 줄일 수 있다고 말한다.",
    ),
    "remedies": Translation("L1, L2, 드롭아웃은 과적합에 대한 대책이다."),
    "width-overfits": Translation("뉴런이 너무 많으면 과적합이 일어난다."),
    "batch-noise": Translation("BN의 규제 효과는 배치의 잡음에서 나온다."),
    "bad-data": Translation("데이터가 나쁘면 모델은 잡음을 학습할 뿐이다."),
    # batch_size
    "batch-of-one": Translation("크기가 1인 배치는 분산이 0이므로 정규화할 수 없다."),
    "small-batches": Translation("BN은 배치가 작으면 잘 작동하지 않는다."),
    "alternatives": Translation(
        "층 정규화(layer norm)와 가중치 정규화(weight norm)는 배치에 의존하지 않으며, BN을 대신할 "
        "수 있다.",
    ),
    "huge-batches": Translation(
        "BN은 배치가 매우 커도 잘 작동하지 않는다. 그런 배치의 분포는 여러 분포가 섞인 혼합 "
        "분포이기 때문이다.",
        "성능 저하의 원인은 혼합 분포가 아니라 줄어든 스텝 수이다. 스텝 수가 같으면 성능 "
        "저하는 사라져야 한다.",
    ),
    "ghost-batches": Translation(
        "큰 배치를 작은 부분으로 나누어 통계량을 구하면 큰 배치의 성능 격차가 메워진다(Hoffer 등, "
        "2017).",
    ),
    "mini-batches": Translation(
        "전체 데이터를 다 쓰지 않고 미니배치마다 갱신하면 학습이 더 빨리 진행된다.",
    ),
    "renorm-small": Translation(
        "배치 재정규화(batch renormalization)는 작은 배치의 문제를 해결한다(Ioffe, 2017).",
    ),
    # inference
    "deterministic": Translation(
        "학습할 때는 출력이 배치의 나머지 샘플에 따라 달라지지만, 추론할 때는 고정된다.",
    ),
    "test-batch-statistics": Translation(
        "테스트 데이터를 그 배치 자체의 통계량으로 정규화하면 제대로 작동하지 않는다.",
    ),
    "wrong-mode": Translation("추론 모드로 바꾸는 것을 잊으면 잘못된 결과가 나온다."),
    "moving-statistics": Translation(
        "추론에는 학습 중에 구해 둔 단순 이동 평균이나 지수 이동 평균을 쓰면 된다.",
    ),
    "average-gamma-beta": Translation(
        "테스트할 때는 미니배치마다 구한 γ와 β의 평균을 사용한다.",
        "평균을 내어 쓰는 것은 배치의 평균과 분산이다. γ와 β는 다른 모든 가중치처럼 마지막 "
        "값을 쓴다.",
    ),
    "population-size": Translation(
        "모집단 통계량을 구하려면 천 개에서 만 개의 샘플이 필요하다(Wu와 Johnson, 2021).",
        "샘플 60개로 구할 때 잃는 정확도는 규칙이 요구하는 .3%p 정도이다.",
    ),
    "shift-hurts": Translation(
        "학습 데이터와 분포가 다른 테스트 데이터에서는 신경망의 성능이 나쁘다.",
    ),
    "shift-mended": Translation(
        "분포가 달라진 데이터에서 통계량을 다시 추정하면 떨어진 정확도를 되찾는다.",
    ),
    # shift
    "reduces-shift": Translation(
        "BN은 내부 공변량 변화(internal covariate shift)를 줄인다.",
        "첫 번째 척도로는 그렇지만, Santurkar 등(2018)의 척도로는 반드시 그런 것은 아니다. "
        "BN이 이를 해결한다는 주장에는 논란이 있다.",
    ),
    "noisy-bn": Translation(
        "BN 뒤에 잡음을 더하면 내부 공변량 변화는 BN이 없을 때보다 커지지만, 학습은 변함없이 "
        "잘된다(Santurkar 등, 2018).",
    ),
    "smoother": Translation("BN은 기울기 방향의 손실을 더 매끄럽게 만든다(Santurkar 등, 2018)."),
    "mini-batches-cause-shift": Translation(
        "미니배치 단위의 학습이 내부 공변량 변화를 일으킨다.",
        "내부 공변량 변화는 앞 층들에서 비롯된다. 앞 층들은 배치가 어떻든 스텝마다 바뀐다.",
    ),
    "depth": Translation(
        "문제는 층이 깊어질수록 누적된다. ReLU, 드롭아웃, L2는 이를 회피할 뿐이고, BN은 이를 "
        "해결한다.",
        "20개 층의 ReLU 네트워크에서는 이렇게 적은 스텝 뒤에 BN을 쓴 쪽이 뒤처진다.",
    ),
    "amplified": Translation("앞쪽 층의 작은 변화는 출력으로 갈수록 증폭되며, BN은 이를 억제한다."),
    "outlier-weights": Translation("몇몇 가중치가 크면 층을 지날 때마다 분포가 달라진다."),
    "variance-by-depth": Translation("BN은 층이 깊어질수록 분산이 커지는 현상을 완화한다."),
    # batches
    "representative": Translation(
        "미니배치는 하나하나가 전체 데이터를 대표하도록 잘 섞여 있어야 한다.",
        "학습률이 같으면, 두 클래스만으로 이루어진 배치는 BN이 없을 때 훨씬 더 해롭다.",
    ),
    "all-data-ideal": Translation(
        "통계량은 전체 데이터로 구하는 것이 가장 좋으며, 배치는 이를 추정할 뿐이다.",
    ),
    "renorm-rescues": Translation(
        "배치 재정규화는 잘 섞이지 않은 배치의 문제를 해소한다(Ioffe, 2017).",
    ),
    # saturation
    "linear-zone": Translation(
        "N(0, 1)을 따르는 값의 95%는 ±1.96 안에 들며, 이 구간에서 시그모이드는 선형이다.",
        "이 구간은 직선으로 잘 설명되지만, 미분값은 절반 아래로 떨어진다.",
    ),
    "minus-one-to-one": Translation(
        "정규화한 값은 -1과 1 사이에 있다.",
        "평균이 0이고 분산이 1일 뿐이며, 크기가 m인 배치에서는 √(m - 1)에 이를 수 있다.",
    ),
    "no-saturation": Translation(
        "입력의 범위가 고정되므로 포화하는 활성화 함수를 써도 포화가 일어나지 않는다.",
        "고정되는 것은 범위가 아니라 두 적률(평균과 분산)이다. γ와 β에 의해 다시 포화될 수 있다.",
    ),
    "gamma-beta-restore": Translation("γ와 β는 정규화로 잃은 활성화 함수의 비선형성을 되살린다."),
    "gamma-beta-choose": Translation("신경망은 어떤 분포가 가장 좋은지를 γ와 β를 통해 학습한다."),
    "relu-half": Translation(
        "γ와 β는 ReLU가 음수였던 값, 즉 전체의 절반을 모두 0으로 만드는 것을 막아 준다.",
    ),
    "gaussian": Translation(
        "정규화를 거친 값은 평균이 0인 가우시안 분포를 따른다.",
        "분포의 모양은 그대로이다. 왜도와 첨도는 변하지 않는다.",
    ),
    # placement
    "before-activation": Translation(
        "BN은 활성화 함수 앞에 두어야 한다.",
        "이 신경망들에서는 시그모이드 뒤에 둔 BN이 더 좋고, ReLU와 tanh에서는 시드 다섯 개로 "
        "차이가 드러나지 않는다.",
    ),
    "bias-left-out": Translation("BN 앞에서는 편향을 빼도 잃는 것이 없다."),
    "lrn-unneeded": Translation("BN을 적용하면 국소 반응 정규화(LRN)는 필요 없다."),
    # transfer
    "pretrained": Translation("사전 학습된 모델을 목적에 맞게 조정하면 목표에 더 빨리 도달한다."),
    "statistics-transfer": Translation(
        "새로운 데이터에서는 통계량을 고정하지 말고 다시 추정해야 한다.",
    ),
    # inception
    "bn-baseline": Translation(
        "Inception에 BN만 적용해도 절반이 안 되는 스텝 만에 원래 모델을 따라잡는다.",
    ),
    "bn-x5": Translation(
        "학습률을 5배로 높이고 일곱 가지 변경을 모두 적용하면 14배 빨라진다.",
        "1,280스텝짜리 축소판으로는 14배를 보여 줄 수 없으므로, 판정 규칙은 5배를 요구한다.",
    ),
    "bn-x30": Translation(
        "학습률을 30배로 높이면 처음에는 조금 더 느리게 학습하지만, 최종 결과는 가장 좋다.",
        "72.2%에 도달하는 속도는 Inception보다 6배가 아니라 11.5배 빠르다.",
    ),
    "inception-x5": Translation("BN이 없는 Inception은 5배의 학습률을 견디지 못한다."),
    "sigmoid-trains": Translation(
        "BN을 적용하면 시그모이드를 쓴 깊은 신경망도 학습되지만, 적용하지 않으면 무작위 추측 "
        "수준에 머문다.",
    ),
    "seven-changes": Translation(
        "BN에는 그에 따르는 변경들이 필요하며, 그 하나하나가 도움이 된다.",
    ),
    # compare
    "norms-accuracy": Translation(
        "저마다 가장 좋은 학습률에서 BN을 적용한 신경망은 적용하지 않은 신경망보다 최종 테스트 "
        "정확도가 높다.",
    ),
    "norms-steps": Translation(
        "BN을 적용하면 더 적은 스텝 만에 적용하지 않은 신경망의 정확도에 도달한다."
    ),
    "norms-seconds": Translation(
        "BN을 적용하면 적용하지 않은 신경망의 정확도에 도달하는 데 걸리는 시간도 줄어든다.",
        "논문은 스텝 수를 센다. BN을 적용하면 스텝마다 시간이 더 걸리며, 얼마나 더 걸리는지는 "
        "기계에 따라 다르다.",
    ),
    "norms-group": Translation(
        "그룹 정규화(group norm)는 작은 배치에서 BN보다 못하지 않으며, 배치가 작아질수록 "
        "유리해진다(Wu와 He, 2018).",
    ),
    "norms-layer": Translation(
        "합성곱 신경망에서 층 정규화(layer norm)는 BN보다 못하다(Ba 등, 2016).",
        "여기서는 위치마다 통계량을 구하지만, Ba 등은 층 전체의 통계량을 쓴다.",
    ),
    "norms-weight": Translation(
        "가중치 정규화(weight norm)의 테스트 정확도는 BN에 미치지 못한다(Gitman과 Ginsburg, 2017).",
    ),
    "norms-ghost": Translation(
        "고스트 배치는 보통 크기의 배치에서도 도움이 된다(Summers와 Dinneen, 2020)."
    ),
    "norms-bfloat16": Translation(
        "bfloat16으로 학습해도 float32로 학습한 것과 같은 결과에 이른다(Kalamkar 등, 2019).",
    ),
}

VERDICTS: dict[str, str] = {
    rules.HOLDS: "성립",
    rules.PARTLY: "부분적으로 성립",
    rules.UNSHOWN: "입증되지 않음",
    rules.FAILS: "성립하지 않음",
    rules.UNMEASURED: "측정되지 않음",
}

PHRASES: dict[str, str] = {
    "Claim": "주장",
    "Source": "출처",
    "Verdict": "판정",
    "Measured": "측정값",
    "Experiment": "실험",
    "To say instead, or besides:": "바로잡거나 덧붙일 말:",
    "Every claim about batch normalization, measured": "배치 정규화에 관한 모든 주장과 측정 결과",
}
